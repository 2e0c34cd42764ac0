"""A delta's public name is its task and version, `sst2@1`; a backbone's may end in its bits, `minilm@8bit`."""

from typing import Literal

from registry.errors import NotFound
from tasks.errors import InputError

Bits = Literal[8, 4]
BITS: dict[str, Bits] = {"8bit": 8, "4bit": 4}  # behind the @ of a quantised backbone's name
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


def split_bits(backbone: str) -> tuple[str, Bits | None]:
    """A backbone's name without the bits that it says, and these.

    >>> split_bits("minilm@8bit"), split_bits("models/llama-8bit")
    (('minilm', 8), ('models/llama-8bit', None))
    """
    plain, _, ending = backbone.rpartition("@")
    return (plain, BITS[ending]) if plain and ending in BITS else (backbone, None)


def quantized_name(plain: str, bits: Bits | None) -> str:
    """What a backbone is called in so many bits: a name that says how to load it again.

    >>> with_bits("minilm", 8), with_bits("minilm", None)
    ('minilm@8bit', 'minilm')
    """
    return plain if bits is None else f"{plain}@{bits}bit"


def validate_name(what: str, name: str) -> str:
    """`name`, if nothing in it could be taken for a delta's version, and every database can hold it.

    Raises: InputError, where it is empty, too long, no text, or holds an `@`.
    """
    if len(name) > LONGEST_NAME or "\0" in name or escape_for_storage(name) != name:
        raise InputError(
            f"a {what} cannot be called {name[:80]!r}: names have at most {LONGEST_NAME} signs, and none is NUL "
            f"or half a surrogate pair. Rename the {what}."
        )
    if not name or "@" in name:
        raise InputError(f"a {what} cannot be called {name!r}: names are not empty and hold no '@'. Rename the {what}.")
    return name


def escape_for_storage(text: str) -> str:
    """`text` as every database can hold it: NUL and half surrogate pairs become their escapes."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
