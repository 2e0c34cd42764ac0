"""Importing a registry archive into an empty database of any kind."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from sqlalchemy import Connection, DateTime, MetaData, Table, inspect, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from registry.blobs import BlobStore
from registry.errors import ArchiveError, RegistryError
from registry.operations.archive import Manifest, blob_entry, iter_rows, open_archive
from registry.reads.blob_references import referenced_blobs
from registry.redaction import redact
from registry.registry import resolve_stores
from registry.schema import migrate
from registry.schema.base import Base
from registry.schema.connections import migration_transaction, reset_sequences
from tasks.errors import InputError

CHUNK_ROWS = 1000  # per insert


def restore_registry(file: Path, url: str, blobs: str) -> Manifest:
    """Load an archive into the empty database at `url` and the blob store at `blobs`.

    An archive of an older schema is loaded into that schema, which is then migrated. The file is verified completely
    before anything is written, and all rows are written in one transaction.

    Args:
        file: The archive.
        url: SQLAlchemy URL of the database.
        blobs: A folder, or an fsspec URL.

    Returns:
        The archive's manifest.

    Raises:
        ArchiveError: The file is not a complete archive.
        InputError: The registry at `url` is not empty.
    """
    with open_archive(file) as (archive, manifest, digests):
        migrate.require_known_revision(manifest.revision)
        store, engine = resolve_stores(url, blobs)
        try:
            with migration_transaction(engine) as connection:
                _load(connection, archive, manifest)
                _store_blobs(connection, store, archive, digests)
        except SQLAlchemyError as error:
            why = redact(f"{file} could not be restored: {getattr(error, 'orig', error)}", url)
            raise RegistryError(f"{why}. Nothing was written.") from None  # the cause may quote the URL
        finally:
            engine.dispose()
    return manifest


def _load(connection: Connection, archive: ZipFile, manifest: Manifest) -> None:
    tables = _empty_tables(connection, manifest.revision)
    names = {table.name for table in tables}
    if names != manifest.tables.keys():
        raise ArchiveError(
            f"{archive.filename} has tables {sorted(manifest.tables)}, and revision {manifest.revision} has "
            f"{sorted(names)}. Take another copy of it."
        )
    for table in tables:
        typed_rows = _parse_datetimes(table, iter_rows(archive, table.name))
        while rows := list(islice(typed_rows, CHUNK_ROWS)):
            connection.execute(table.insert(), rows)
    reset_sequences(connection, tables)
    migrate.migrate(connection)


def _empty_tables(connection: Connection, revision: str) -> Sequence[Table]:
    """Return the tables of that revision, created if missing, each after those it references."""
    revision_there, names_before = migrate.current_revision(connection), set(inspect(connection).get_table_names())
    if revision_there is None:
        migrate.migrate(connection, revision)
        table_names = set(inspect(connection).get_table_names()) - names_before - {migrate.VERSION_TABLE}
    elif revision_there == revision == migrate.latest_revision():
        table_names = set(Base.metadata.tables)
    else:
        raise InputError(
            f"the archive is of schema revision {revision}, and this database has the tables of revision "
            f"{revision_there} already. Restore into a database without them, as of a new --home."
        )
    metadata = MetaData()
    metadata.reflect(connection, only=sorted(table_names))
    for table in metadata.sorted_tables:
        if connection.execute(select(table).limit(1)).first():
            raise InputError(
                f"the registry is not empty: it has {table.name}. Restore into an empty one, as of a new --home."
            )
    return metadata.sorted_tables


def _parse_datetimes(table: Table, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    datetime_columns = [column.name for column in table.columns if isinstance(column.type, DateTime)]
    for row in rows:
        if row.keys() != set(table.columns.keys()):
            raise ArchiveError(f"a row of {table.name} has {sorted(row)}, not {sorted(table.columns.keys())}.")
        try:
            yield row | {name: datetime.fromisoformat(row[name]) for name in datetime_columns if row[name] is not None}
        except (TypeError, ValueError) as error:
            raise ArchiveError(f"a row of {table.name} holds an invalid time: {error}.") from error


def _store_blobs(connection: Connection, store: BlobStore, archive: ZipFile, digests: Sequence[str]) -> None:
    with Session(connection) as session:
        referenced = {digest for _, digest in referenced_blobs(session)}
    if wrong := sorted(referenced ^ set(digests)):
        raise ArchiveError(f"blob {wrong[0]} is missing in {archive.filename}, or no row of it names it.")
    for digest in digests:
        store.put(archive.read(blob_entry(digest)))
