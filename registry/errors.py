"""What can go wrong in the registry.

ContinualError (exit 1)          InputError (exit 2)
└── RegistryError                ├── NotFound
    ├── BlobError                ├── SchemaError
    ├── ClaimLost                ├── DatabaseUnavailable
    └── Interrupted              ├── TaskChanged
        └── Disconnected         ├── TaskNeeded
                                 ├── NothingToDo
                                 ├── StreamChanged
                                 └── ArchiveError
"""

from collections.abc import Iterable
from difflib import get_close_matches

from tasks.errors import ContinualError, InputError


class RegistryError(ContinualError):
    """The registry could not do what was asked, or holds what it should not."""


class BlobError(RegistryError):
    """A blob is missing, cannot be read or written, or its bytes are not what is promised."""


class ClaimLost(RegistryError):
    """A position is another holder's by now: what was done for it is not wanted any more."""


class Interrupted(RegistryError):
    """Another transaction came first, or no connection was to be had; nothing is done, and can be done again."""


class Disconnected(Interrupted):
    """The connection to the database broke; what was being done can be done again."""


class NotFound(InputError):
    """No row has this name."""


class SchemaError(InputError):
    """The database's schema is older or newer than this code's."""


class DatabaseUnavailable(InputError):
    """The database does not answer, or what its URL names is none."""


class TaskChanged(InputError):
    """A known task came back with another kind, metric or labels."""


class TaskNeeded(InputError):
    """A task cannot be removed while it is being learned, or while others came from what it learned."""


class NothingToDo(InputError):
    """What was asked for is so already."""


class StreamChanged(InputError):
    """A stream that was begun came back with another backbone or other entries."""


class ArchiveError(InputError):
    """A file is not the whole archive of a registry that this code can read."""


def not_found(what: str, name: str, *, known: Iterable[str], first: str = "Learn a task first") -> NotFound:
    """The error for an unknown `name`, with the known names nearest to it; where there are none, what to do `first`."""
    names = sorted(set(known))
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    if not names:
        return NotFound(f"no {what} is called {name!r}: the registry holds no {what} yet. {first}.")
    shown = ", ".join(near or names[:5])
    relation = "nearest known" if near else "known"
    return NotFound(f"no {what} is called {name!r}; {relation}: {shown}. Use one of the {len(names)} registered names.")
