"""Exporting a registry to one file: a snapshot of its rows, and every blob that they reference."""

import json
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

from sqlalchemy import Table, select
from sqlalchemy.orm import Session

from registry.errors import RegistryError
from registry.operations.archive import (
    ARCHIVE_VERSION,
    MANIFEST,
    MAX_LINE_BYTES,
    Manifest,
    TableManifest,
    blob_entry,
    table_entry,
)
from registry.reads.blob_references import referenced_blobs
from registry.registry import Registry
from registry.schema.base import Base, now
from registry.schema.revisions import current_revision
from tasks.errors import InputError

CHUNK_ROWS = 1000  # per fetch


def dump_registry(registry: Registry, file: Path) -> Manifest:
    """Write an archive of the registry, also while others write to it.

    Args:
        registry: The registry.
        file: The archive; must not exist.

    Returns:
        The archive's manifest.

    Raises:
        InputError: The file exists or cannot be written.
        BlobError: A blob is missing or damaged.
        RegistryError: A row is longer than `restore_registry` reads.
    """
    if file.exists():
        raise InputError(f"{file} is there already. Give a new name, or remove it first.")
    draft = file.with_name(f".{uuid4().hex}.draft")
    try:
        with registry.read_session() as session, ZipFile(draft, "x", ZIP_DEFLATED) as archive:
            manifest = _write_archive(archive, session, registry)
        draft.replace(file)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error}. Give another place.") from error
    finally:
        draft.unlink(missing_ok=True)
    return manifest


def _write_archive(archive: ZipFile, session: Session, registry: Registry) -> Manifest:
    tables = {table.name: _write_table(archive, session, table) for table in Base.metadata.sorted_tables}
    digests = sorted({digest for _, digest in referenced_blobs(session)})
    for digest in digests:
        archive.writestr(blob_entry(digest), registry.blobs.get(digest), ZIP_STORED)  # weights hardly compress
    revision = current_revision(session.connection())
    manifest = Manifest(
        format=ARCHIVE_VERSION, revision=str(revision), created_at=now(), tables=tables, blobs=len(digests)
    )
    archive.writestr(MANIFEST, manifest.model_dump_json(indent=2))
    return manifest


def _write_table(archive: ZipFile, session: Session, table: Table) -> TableManifest:
    digest, count = sha256(), 0
    query = session.execute(select(table).order_by(table.c.id).execution_options(yield_per=CHUNK_ROWS))
    with archive.open(table_entry(table.name), "w", force_zip64=True) as entry:
        for row in query.mappings():
            line = json.dumps(dict(row), default=_encode).encode() + b"\n"
            if len(line) > MAX_LINE_BYTES:
                raise RegistryError(
                    f"row {row['id']} of {table.name} has {len(line):,} bytes, and one of a dump at most "
                    f"{MAX_LINE_BYTES:,}. Copy the database with its own tools."
                )
            entry.write(line)
            digest.update(line)
            count += 1
    return TableManifest(rows=count, sha256=digest.hexdigest())


def _encode(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"no JSON for {value!r}")
