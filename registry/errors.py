"""The registry's errors.

ContinualError (exit 1)          InputError (exit 2)
└── RegistryError                ├── NotFound
    ├── BlobError                ├── SchemaError
    ├── ClaimLost                ├── DatabaseUnavailable
    └── Interrupted              │   └── DatabaseDamaged
        └── Disconnected         ├── RegistryMissing
                                 ├── TaskChanged
                                 ├── TaskNeeded
                                 ├── NothingToDo
                                 ├── StreamChanged
                                 └── ArchiveError
"""

from collections.abc import Iterable
from difflib import get_close_matches

from registry.redaction import MAX_QUOTED, quote
from tasks.errors import ContinualError, InputError


class RegistryError(ContinualError):
    """An operation on the registry failed, or the registry holds invalid data."""


class BlobError(RegistryError):
    """A blob is missing, cannot be read or written, or its bytes do not match its digest."""


class ClaimLost(RegistryError):
    """A position is held by another controller now; the work done for it is to be discarded."""


class Interrupted(RegistryError):
    """A concurrent transaction won, or no connection was available; nothing was written, a retry is safe."""


class Disconnected(Interrupted):
    """The connection to the database broke; the operation can be retried."""


class NotFound(InputError):
    """No row has the requested name."""


class SchemaError(InputError):
    """The database's schema is older or newer than the code's."""


class DatabaseUnavailable(InputError):
    """The database does not answer, or its URL does not point to a database."""


class DatabaseDamaged(DatabaseUnavailable):
    """The database's file is damaged, or its rows cannot be read."""


class RegistryMissing(InputError):
    """The database is missing or empty, though the blob store holds what was learned."""


class StoreMismatch(InputError):
    """The blob store belongs to another registry."""


class TaskChanged(InputError):
    """A registered task was submitted again with another kind or metric, or without some of its labels."""


class TaskNeeded(InputError):
    """A task cannot be removed: it is being learned, or other tasks' deltas derive from its deltas."""


class NothingToDo(InputError):
    """The requested state is the current one."""


class StreamChanged(InputError):
    """A registered stream was submitted again with another backbone or other entries."""


class ArchiveError(InputError):
    """A file is not a complete registry archive in a format that this code can read."""


def not_found(noun: str, name: str, *, known_names: Iterable[str], advice: str = "Learn a task first") -> NotFound:
    """Return the error for an unknown `name`, listing the closest known names.

    Args:
        noun: The kind of thing, such as "task".
        name: The name that was looked up.
        known_names: All registered names.
        advice: The next step if there are no names at all.
    """
    names = sorted(set(known_names))
    close_matches = get_close_matches(name[:MAX_QUOTED], names, n=3, cutoff=0.5)  # its time grows with the name
    if not names:
        return NotFound(f"no {noun} is called {quote(name)}: the registry holds no {noun} yet. {advice}.")
    shown = ", ".join(close_matches or names[:5])
    relation = "nearest known" if close_matches else "known"
    return NotFound(
        f"no {noun} is called {quote(name)}; {relation}: {shown}. Use one of the {len(names)} registered names."
    )
