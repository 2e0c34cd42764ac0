"""A delta's public name is its task and version: `sst2@1`."""

from registry.errors import NotFound
from tasks.errors import InputError

LONGEST = 10  # digits of a version that a database takes
LONGEST_NAME = 500  # signs: what PostgreSQL takes into an index, at four bytes each


def delta_name(task: str, version: int) -> str:
    """The public name of a task's delta.

    >>> delta_name("sst2", 1)
    'sst2@1'
    """
    return f"{task}@{version}"


def parse_delta(name: str) -> tuple[str, int]:
    """Task and version of a delta's public name.

    >>> parse_delta("sst2@1")
    ('sst2', 1)

    Raises: NotFound, where `name` is not of that form.
    """
    task, at, version = name.rpartition("@")
    if not (task and at and version.isascii() and version.isdigit() and len(version) < LONGEST):
        raise NotFound(
            f"no delta can be called {name!r}: names are TASK@VERSION, such as sst2@1. See `continual deltas`."
        )
    return task, int(version)


def plain_name(what: str, name: str) -> str:
    """`name`, if nothing in it could be taken for a delta's version, and every database can hold it.

    Raises: InputError, where it is empty, too long, no text, or holds an `@`.
    """
    if len(name) > LONGEST_NAME or "\0" in name or stored_text(name) != name:
        raise InputError(
            f"a {what} cannot be called {name[:80]!r}: names have at most {LONGEST_NAME} signs, and none is NUL "
            f"or half a surrogate pair. Rename the {what}."
        )
    if not name or "@" in name:
        raise InputError(f"a {what} cannot be called {name!r}: names are not empty and hold no '@'. Rename the {what}.")
    return name


def stored_text(text: str) -> str:
    """`text` as every database can hold it: NUL and half surrogate pairs become their escapes."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
