"""The one tree of errors.

ContinualError                    exit code 1: something failed while running
├── InputError                    exit code 2: it could be checked before anything was learned
│   ├── StreamError               a stream or task file that cannot be read as one        (tasks)
│   ├── DataError                 rows that are missing or not what the task says         (tasks)
│   ├── NotFound, SchemaError, DatabaseUnavailable, TaskChanged, StreamChanged            (registry)
│   ├── ArchiveError                                                                      (registry)
│   ├── BackboneError             a backbone that cannot be loaded or has no such site
│   ├── MethodError               a method or a setting that does not exist or does not fit
│   ├── EngineError               an engine that does not exist, or that could not learn a stream
│   ├── ExchangeError             a delta that has no such form elsewhere, or a folder that does not fit here
│   ├── RoutingError              a router that does not exist, or is none
│   ├── StudyError                a study or a setting of one that does not exist, or tasks that it cannot take
│   ├── TextError                 an input line that `predict` cannot read
│   ├── NoDelta                   a task that is known, but not learned on the backbone that is served
│   ├── WrongKind                 a task of a kind that does not answer in the way asked for
│   └── TooLarge                  more, or longer, than one request may hold
├── RegistryError                 what was learned cannot be read or written              (registry)
│   ├── BlobError                 a blob is missing, not what was stored, or cannot be    (registry)
│   ├── ClaimLost                 a task is another controller's by now                   (registry)
│   └── Interrupted               another transaction came first                          (registry)
│       └── Disconnected          the connection to the database broke                    (registry)
├── DeltaError                    a delta does not fit the backbone it is put on
├── LearnError                    a task failed while it was being learned
└── Unserved                      a request that would be answered at another time
    ├── TooBusy                   too much waits already
    ├── TooLate                   it waited for too long
    ├── ReplicaLost               the replica that was asked is gone
    └── Closing                   the server ends
"""

from registry.errors import (
    ArchiveError,
    BlobError,
    ClaimLost,
    DatabaseUnavailable,
    Disconnected,
    Interrupted,
    NotFound,
    RegistryError,
    SchemaError,
    StreamChanged,
    TaskChanged,
)
from tasks.errors import ContinualError, DataError, InputError, StreamError

__all__ = [
    "ArchiveError",
    "BackboneError",
    "BlobError",
    "ClaimLost",
    "Closing",
    "ContinualError",
    "DataError",
    "DatabaseUnavailable",
    "DeltaError",
    "Disconnected",
    "EngineError",
    "ExchangeError",
    "InputError",
    "InputLineError",
    "Interrupted",
    "MethodError",
    "NoDelta",
    "NotFound",
    "RegistryError",
    "ReplicaLost",
    "RoutingError",
    "SchemaError",
    "ServiceUnavailable",
    "StreamChanged",
    "StreamError",
    "StudyError",
    "TaskChanged",
    "TooBusy",
    "TooLarge",
    "TooLate",
    "TrainingError",
    "WrongKind",
]


class BackboneError(InputError):
    """A backbone cannot be loaded, or lacks a site that a method edits."""


class MethodError(InputError):
    """A method, or one of its settings, does not exist or does not fit."""


class EngineError(InputError):
    """An engine does not exist, is not installed, or could not learn a stream with what it has."""


class ExchangeError(InputError):
    """A delta cannot be exported in the form asked for, or a folder cannot be imported as one."""


class RoutingError(InputError):
    """A router that does not exist, or is none."""


class StudyError(InputError):
    """A study, or a setting of one, does not exist or does not fit, or the tasks are not what it needs."""


class InputLineError(InputError):
    """A line given to `predict` is neither a text nor a JSON object with one."""


class NoDelta(InputError):
    """A task is known, but has no delta on the backbone that is served."""


class WrongKind(InputError):
    """A task is of a kind that does not answer in the way asked for."""


class TooLarge(InputError):
    """A request holds more, or longer texts, than it may."""


class DeltaError(ContinualError):
    """A delta does not fit the backbone it is put on, or cannot be read."""


class TrainingError(ContinualError):
    """A task failed while it was being learned."""


class ServiceUnavailable(ContinualError):
    """A server does not answer a request now, though another time it would."""


class TooBusy(ServiceUnavailable):
    """Too many inputs wait; `retry_after` is when it makes sense to ask again, in seconds."""

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooLate(ServiceUnavailable):
    """Inputs waited for longer than they may."""


class ReplicaLost(ServiceUnavailable):
    """The replica that was to answer ended before it did; another one can."""


class Closing(ServiceUnavailable):
    """A server finishes what it has accepted, and accepts nothing more."""
