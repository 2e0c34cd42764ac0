"""What can go wrong in the registry.

ContinualError (exit 1)          InputError (exit 2)
└── RegistryError                ├── NotFound
    └── BlobError                ├── SchemaError
                                 ├── TaskChanged
                                 ├── TaskNeeded
                                 ├── NothingToDo
                                 └── StreamChanged
"""

from collections.abc import Iterable
from difflib import get_close_matches

from tasks.errors import ContinualError, InputError


class RegistryError(ContinualError):
    """The registry could not do what was asked, or holds what it should not."""


class BlobError(RegistryError):
    """A blob is missing, or its bytes are not those its digest promises."""


class NotFound(InputError):
    """No row has this name."""


class SchemaError(InputError):
    """The database's schema is older or newer than this code's."""


class TaskChanged(InputError):
    """A known task came back with another kind, metric or labels."""


class TaskNeeded(InputError):
    """A task cannot be removed while it is being learned, or while others came from what it learned."""


class NothingToDo(InputError):
    """What was asked for is so already."""


class StreamChanged(InputError):
    """A stream that was begun came back with another backbone or other entries."""


def not_found(what: str, name: str, *, known: Iterable[str]) -> NotFound:
    """The error for an unknown `name`, with the known names nearest to it."""
    names = sorted(set(known))
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    if not names:
        return NotFound(f"no {what} is called {name!r}: the registry holds no {what} yet. Learn a task first.")
    shown = ", ".join(near or names[:5])
    relation = "nearest known" if near else "known"
    return NotFound(f"no {what} is called {name!r}; {relation}: {shown}. Use one of the {len(names)} registered names.")
