"""The tree of errors.

ContinualError                    exit code 1: something failed while running
├── InputError                    exit code 2: found before anything was learned
│   ├── StreamError               a stream or task file is not valid                              (tasks)
│   ├── DataError                 rows are missing, or contradict the task's spec                 (tasks)
│   ├── NotFound, SchemaError, DatabaseUnavailable, TaskChanged, StreamChanged                    (registry)
│   ├── ArchiveError, StoreMismatch                                                               (registry)
│   ├── BackboneError             a backbone cannot be loaded, or lacks a site
│   ├── MethodError               a method or one of its settings does not exist or does not fit
│   ├── EngineError               an engine does not exist, or lacks the resources for a stream
│   ├── ExchangeError             a delta has no such format elsewhere, or a folder does not fit here
│   ├── RoutingError              a routing rule does not exist, or is not valid
│   ├── StudyError                a study, one of its settings or its tasks do not exist or do not fit
│   ├── InputLineError            an input line of `predict` cannot be parsed
│   ├── NoDelta                   a task is registered, but not learned on the served backbone
│   ├── WrongKind                 an endpoint does not serve tasks of this kind
│   └── TooLarge                  a request exceeds the limits of number or length
├── RegistryError                 what was learned cannot be read or written                      (registry)
│   ├── BlobError                 a blob is missing or damaged, or cannot be written              (registry)
│   ├── ClaimLost                 another controller has claimed the task                         (registry)
│   └── Interrupted               a concurrent transaction came first                             (registry)
│       └── Disconnected          the connection to the database broke                            (registry)
├── DeltaError                    a delta does not fit its backbone, or cannot be read
├── TrainingError                 a task failed while it was being learned
├── GenerationError               an answer could not be written
└── ServiceUnavailable            a request is refused now, and may succeed later
    ├── TooBusy                   the queue is full
    ├── TooLate                   the request waited for too long
    ├── ReplicaLost               the replica that had the request ended
    └── Closing                   the server shuts down
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
    StoreMismatch,
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
    "GenerationError",
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
    "StoreMismatch",
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
    """A backbone cannot be loaded, has weights that are not finite, or lacks a site that a method edits."""


class MethodError(InputError):
    """A method, or one of its settings, does not exist or does not fit."""


class EngineError(InputError):
    """An engine does not exist, is not installed, or lacks the resources to learn a stream."""


class ExchangeError(InputError):
    """A delta cannot be exported in a format, or a folder cannot be imported as a delta."""


class RoutingError(InputError):
    """A routing rule does not exist, is not valid, or needs a package that is not installed."""


class StudyError(InputError):
    """A study, or a setting of one, does not exist or does not fit, or the tasks are not what it needs."""


class InputLineError(InputError):
    """A line given to `predict` is neither a text nor a JSON object with one."""


class NoDelta(InputError):
    """A task is registered, but has no delta on the backbone that is served."""


class WrongKind(InputError):
    """An endpoint does not serve tasks of this kind."""


class TooLarge(InputError):
    """A request holds more texts, or longer ones, than the server accepts."""


class DeltaError(ContinualError):
    """A delta does not fit the backbone it is attached to, or cannot be read."""


class TrainingError(ContinualError):
    """A task failed while it was being learned."""


class GenerationError(ContinualError):
    """An answer could not be written: its delta cannot be used, or memory ends."""


class ServiceUnavailable(ContinualError):
    """A server refuses a request now, though a later one may succeed."""


class TooBusy(ServiceUnavailable):
    """Too many inputs are queued.

    Attributes:
        retry_after: Seconds after which a client should try again.
    """

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooLate(ServiceUnavailable):
    """An input waited in the queue for longer than it may."""


class ReplicaLost(ServiceUnavailable):
    """The replica that had a request ended before it answered; another one can answer."""


class Closing(ServiceUnavailable):
    """A server finishes the requests it has accepted, and accepts no more."""
