"""One file that holds a whole registry: a zip of a line of JSON for each row, the blobs that rows name, and a manifest.

Nothing is unpacked by the names that stand in it: an entry is looked up by the name that it must have, or refused.
"""

import json
import re
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from registry.errors import ArchiveError

ARCHIVE_VERSION = 1
MANIFEST = "manifest.json"
CHUNK_BYTES = 1 << 20  # bytes read at once
MAX_MANIFEST_BYTES = 1 << 20  # bytes: it has a line for each table

_BLOB = re.compile(r"blobs/([0-9a-f]{64})")
_UNREADABLE = (BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)  # what zipfile raises of bad bytes


class TableManifest(BaseModel):
    """How many rows of a table there are, and the digest of their lines."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: NonNegativeInt
    sha256: str


class Manifest(BaseModel):
    """What an archive holds: `revision` is of the schema, `blobs` their number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(ge=1)
    revision: str
    created_at: datetime
    tables: dict[str, TableManifest]
    blobs: NonNegativeInt


def table_entry(name: str) -> str:
    """Where the rows of a table stand in an archive."""
    return f"tables/{name}.jsonl"


def blob_entry(digest: str) -> str:
    """Where a blob stands in an archive."""
    return f"blobs/{digest}"


@contextmanager
def open_archive(file: Path) -> Iterator[tuple[ZipFile, Manifest, tuple[str, ...]]]:
    """A whole archive, its manifest, and the digests of its blobs; everything in it was read and is as it was written.

    Raises: ArchiveError, where the file is none, is newer, was cut off or changed.
    """
    with ExitStack() as held:
        try:
            archive = held.enter_context(ZipFile(file))
            manifest = _manifest(archive)
            digests = _checked(archive, manifest)
        except _UNREADABLE as error:
            raise ArchiveError(f"{file} is not a whole archive of a registry: {error}. Take another copy.") from error
        yield archive, manifest, digests


def iter_rows(archive: ZipFile, table: str) -> Iterator[dict[str, Any]]:
    """The rows of a table."""
    with archive.open(table_entry(table)) as entry:
        for number, line in enumerate(entry, start=1):
            try:
                yield dict(json.loads(line))
            except (ValueError, TypeError) as error:
                raise ArchiveError(f"{archive.filename}: line {number} of {table} is no row: {error}.") from error


def _manifest(archive: ZipFile) -> Manifest:
    if MANIFEST not in archive.namelist():
        raise ValueError(f"it has no {MANIFEST}")
    with archive.open(MANIFEST) as entry:
        said = json.loads(entry.read(MAX_MANIFEST_BYTES))
    if isinstance(said, dict) and isinstance(found := said.get("format"), int) and found > ARCHIVE_VERSION:
        raise ArchiveError(
            f"{archive.filename} is an archive of format {found}, and this release reads formats up to "
            f"{ARCHIVE_VERSION}. Install the release that wrote it, or a later one."
        )
    try:
        return Manifest.model_validate(said)
    except ValidationError as error:
        raise ValueError(f"its {MANIFEST} is none: {error.error_count()} wrong values") from error


def _checked(archive: ZipFile, manifest: Manifest) -> tuple[str, ...]:
    """The digests of all blobs. Raises: ValueError, where an entry is missing, one too many, or not as it was."""
    names = archive.namelist()
    digests = tuple(found[1] for name in names if (found := _BLOB.fullmatch(name)))
    expected = {MANIFEST, *map(table_entry, manifest.tables), *map(blob_entry, digests)}
    if wrong := sorted(set(names) ^ expected):
        raise ValueError(f"{wrong[0]!r} is missing in it or does not belong there")
    if len(names) != len(expected) or len(digests) != manifest.blobs:
        raise ValueError(f"it holds {len(digests)} blobs of {manifest.blobs}, or one twice")
    for name, rows in manifest.tables.items():
        with archive.open(table_entry(name)) as entry:
            if _digest(entry) != rows.sha256:
                raise ValueError(f"the rows of {name} are not those that were written")
    for digest in digests:
        with archive.open(blob_entry(digest)) as entry:
            if _digest(entry) != digest:
                raise ValueError(f"blob {digest} has other bytes")
    return digests


def _digest(entry: IO[bytes]) -> str:
    digest = sha256()
    while piece := entry.read(CHUNK_BYTES):
        digest.update(piece)
    return digest.hexdigest()
