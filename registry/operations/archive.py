"""The archive format: a zip with a JSON line per row, the blobs that rows reference, and a manifest.

Nothing is extracted under a name from the archive: entries are looked up by their expected names, or rejected.
"""

import json
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import IO
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from registry.errors import ArchiveError

ARCHIVE_VERSION = 1
MANIFEST = "manifest.json"
CHUNK_BYTES = 1 << 20  # per read
MAX_MANIFEST_BYTES = 1 << 20  # ample: it has one line per table
MAX_LINE_BYTES = 1 << 24  # of a row: ample for a stream of 30,000 tasks
MAX_EXPANSION = 200  # times its packed size that an entry may have; rows have about 20, an entry of zeros 1,000
MIN_LIMITED_BYTES = 1 << 20  # an entry below may expand as it likes

_BLOB = re.compile(r"blobs/([0-9a-f]{64})")
# Raised by zipfile for bad bytes, and by json for deep nesting.
_UNREADABLE = (BadZipFile, struct.error, zlib.error, EOFError, OSError, RuntimeError, ValueError)


class TableManifest(BaseModel):
    """Number of a table's rows, and the digest of their lines.

    Attributes:
        rows: Number of rows.
        sha256: Digest of the entry's bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: NonNegativeInt
    sha256: str


class Manifest(BaseModel):
    """Contents of an archive.

    Attributes:
        format: Version of the archive format.
        revision: Revision of the database schema.
        created_at: Time of the dump.
        tables: By name.
        blobs: Number of blobs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(ge=1)
    revision: str
    created_at: datetime
    tables: dict[str, TableManifest]
    blobs: NonNegativeInt


def table_entry(name: str) -> str:
    """Return the entry of a table's rows."""
    return f"tables/{name}.jsonl"


def blob_entry(digest: str) -> str:
    """Return the entry of a blob."""
    return f"blobs/{digest}"


@contextmanager
def open_archive(file: Path) -> Iterator[tuple[ZipFile, Manifest, tuple[str, ...]]]:
    """Open an archive after verifying every byte in it.

    Yields:
        The archive, its manifest, and the digests of its blobs.

    Raises:
        ArchiveError: The file is not an archive, of a newer format, truncated or changed.
    """
    with ExitStack() as stack:
        try:
            archive = stack.enter_context(ZipFile(file))
            for info in archive.infolist():
                _check_packing(info)
            manifest = _read_manifest(archive)
            digests = _verify_entries(archive, manifest)
        except _UNREADABLE as error:
            raise ArchiveError(f"{file} is not a whole archive of a registry: {error}. Take another copy.") from error
        yield archive, manifest, digests


def _read_manifest(archive: ZipFile) -> Manifest:
    if MANIFEST not in archive.namelist():
        raise ValueError(f"it has no {MANIFEST}")
    with archive.open(MANIFEST) as entry:
        document = json.loads(entry.read(MAX_MANIFEST_BYTES))
    if isinstance(document, dict) and isinstance(version := document.get("format"), int) and version > ARCHIVE_VERSION:
        raise ArchiveError(
            f"{archive.filename} is an archive of format {version}, and this release reads formats up to "
            f"{ARCHIVE_VERSION}. Install the release that wrote it, or a later one."
        )
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        raise ValueError(f"its {MANIFEST} is none: {error.error_count()} wrong values") from error


def _check_packing(info: ZipInfo) -> None:
    """Raise ValueError for an entry whose few bytes would unpack to very many, or that is packed in another way."""
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise ValueError(f"{info.filename!r} is packed by method {info.compress_type}, and dumps are by deflate")
    if info.file_size > max(MIN_LIMITED_BYTES, MAX_EXPANSION * info.compress_size):
        raise ValueError(f"{info.filename!r} would unpack from {info.compress_size:,} bytes to {info.file_size:,}")


def _verify_entries(archive: ZipFile, manifest: Manifest) -> tuple[str, ...]:
    """Return the digests of all blobs; raise ValueError for a missing, extra or changed entry."""
    names = archive.namelist()
    digests = tuple(match[1] for name in names if (match := _BLOB.fullmatch(name)))
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
