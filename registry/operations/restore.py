"""Importing a registry archive into an empty database of any kind."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from zipfile import ZipFile

from sqlalchemy import Connection, MetaData, Table, inspect, select
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from registry.blobs import BlobStore
from registry.errors import ArchiveError, RegistryError
from registry.operations.archive import Manifest, blob_entry, open_archive
from registry.operations.archive_rows import check_rows, iter_rows
from registry.ownership import require_restorable
from registry.reads.blob_references import referenced_blobs
from registry.redaction import redact
from registry.registry import Registry, resolve_stores
from registry.schema.base import Base, now
from registry.schema.connections import migration_transaction, reset_sequences
from registry.schema.migrate import migrate, tables_of
from registry.schema.revisions import VERSION_TABLE, current_revision, latest_revision, require_known_revision
from registry.schema.tables import ApiKey
from tasks.errors import InputError

CHUNK_ROWS = 1000  # per insert


def restore_registry(file: Path, url: str, blobs: str, *, with_keys: bool = False) -> Manifest:
    """Load an archive into the empty database at `url` and the blob store at `blobs`.

    An archive of an older schema is loaded into that schema, which is then migrated. The file is verified completely
    before anything is written, and all rows are written in one transaction.

    Args:
        file: The archive.
        url: SQLAlchemy URL of the database.
        blobs: A folder, or an fsspec URL.
        with_keys: Restore API keys as they were. Otherwise all are revoked: the writer of the file may have planted
            them, and a registry that never had one would leave a local server open.

    Returns:
        The archive's manifest.

    Raises:
        ArchiveError: The file is not a complete archive.
        InputError: The registry at `url` is not empty.
        StoreMismatch: The blobs at `blobs` are those of another registry, or of another database of this one.
    """
    with open_archive(file) as (archive, manifest, digests):
        require_known_revision(manifest.revision)
        check_rows(archive, manifest, tables_of(manifest.revision))
        store, engine = resolve_stores(url, blobs)
        try:
            with migration_transaction(engine) as connection:
                _load(connection, archive, manifest, with_keys=with_keys)
                _store_blobs(connection, store, archive, digests)
            Registry(engine, store).claim_store()
        except SQLAlchemyError as error:
            why = redact(f"{file} could not be restored: {getattr(error, 'orig', error)}", url)
            # The rows are at fault, or the database; the cause may quote the URL.
            is_data = isinstance(error, IntegrityError | DataError) or not isinstance(error, DBAPIError)
            raise (ArchiveError if is_data else RegistryError)(f"{why}. Nothing was written.") from None
        finally:
            engine.dispose()
    return manifest


def _load(connection: Connection, archive: ZipFile, manifest: Manifest, *, with_keys: bool) -> None:
    tables = _empty_tables(connection, manifest.revision)
    for table in tables:
        rows = iter_rows(archive, table)
        if table.name == ApiKey.__tablename__ and not with_keys:
            rows = (row | {"revoked_at": row["revoked_at"] or now()} for row in rows)
        while chunk := list(islice(rows, CHUNK_ROWS)):
            connection.execute(table.insert(), chunk)
    reset_sequences(connection, tables)
    migrate(connection)


def _empty_tables(connection: Connection, revision: str) -> Sequence[Table]:
    """Return the tables of that revision, created if missing, each after those it references."""
    revision_there, names_before = current_revision(connection), set(inspect(connection).get_table_names())
    if revision_there is None:
        migrate(connection, revision)
        table_names = set(inspect(connection).get_table_names()) - names_before - {VERSION_TABLE}
    elif revision_there == revision == latest_revision():
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


def _store_blobs(connection: Connection, store: BlobStore, archive: ZipFile, digests: Sequence[str]) -> None:
    with Session(connection) as session:
        referenced = {digest for _, digest in referenced_blobs(session)}
        require_restorable(session, store, connection.engine.url, dumped=referenced)
    if wrong := sorted(referenced ^ set(digests)):
        raise ArchiveError(f"blob {wrong[0]} is missing in {archive.filename}, or no row of it names it.")
    for digest in digests:
        store.put(archive.read(blob_entry(digest)))
