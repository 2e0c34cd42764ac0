"""Public names: a delta is `sst2@1` (task@version), a quantised backbone `minilm@8bit`."""

from typing import Literal

from registry.errors import NotFound
from registry.redaction import quote
from tasks.errors import InputError

Bits = Literal[8, 4]
BITS: dict[str, Bits] = {"8bit": 8, "4bit": 4}  # by the suffix of a quantised backbone's name
MAX_VERSION_DIGITS = 10  # exclusive, so that a version fits into a database integer
MAX_NAME_LENGTH = 500  # characters: PostgreSQL's limit for an index entry, at four bytes each


def delta_name(task: str, version: int) -> str:
    """Return the public name of a task's delta.

    >>> delta_name("sst2", 1)
    'sst2@1'
    """
    return f"{task}@{version}"


def parse_delta(name: str) -> tuple[str, int]:
    """Split a delta's public name into task and version.

    >>> parse_delta("sst2@1")
    ('sst2', 1)

    Raises:
        NotFound: `name` is not of the form TASK@VERSION.
    """
    task, separator, version = name.rpartition("@")
    if not (task and separator and version.isascii() and version.isdigit() and len(version) < MAX_VERSION_DIGITS):
        raise NotFound(
            f"no delta can be called {quote(name)}: names are TASK@VERSION, such as sst2@1. See `continual deltas`."
        )
    return task, int(version)


def split_bits(backbone: str) -> tuple[str, Bits | None]:
    """Split a backbone's name into the plain name and its bits.

    >>> split_bits("minilm@8bit"), split_bits("models/llama-8bit")
    (('minilm', 8), ('models/llama-8bit', None))
    """
    plain, _, suffix = backbone.rpartition("@")
    return (plain, BITS[suffix]) if plain and suffix in BITS else (backbone, None)


def quantized_name(backbone: str, bits: Bits | None) -> str:
    """Return the name of a backbone quantised to `bits`; None for full precision.

    >>> quantized_name("minilm", 8), quantized_name("minilm", None)
    ('minilm@8bit', 'minilm')
    """
    return backbone if bits is None else f"{backbone}@{bits}bit"


def validate_name(noun: str, name: str) -> str:
    """Return `name` if it is storable in every database and cannot be mistaken for a delta's name.

    Args:
        noun: The kind of thing, for messages.
        name: The name to check.

    Raises:
        InputError: It is empty, too long, contains `@`, NUL or half a surrogate pair.
    """
    if len(name) > MAX_NAME_LENGTH or "\0" in name or escape_for_storage(name) != name:
        raise InputError(
            f"a {noun} cannot be called {name[:80]!r}: names have at most {MAX_NAME_LENGTH} characters, none of them "
            f"NUL or half a surrogate pair. Rename the {noun}."
        )
    if not name or "@" in name:
        raise InputError(f"a {noun} cannot be called {name!r}: names are not empty and hold no '@'. Rename the {noun}.")
    return name


def escape_for_storage(text: str) -> str:
    """Escape the characters that some databases reject: NUL and half surrogate pairs."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
