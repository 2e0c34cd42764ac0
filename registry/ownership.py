"""Which registry a blob store belongs to: a mark in the store, compared before anything is written.

The mark is written with the first write of a registry, also into stores of earlier releases that have none. A folder
that is copied with registry and blobs keeps working: identity and mark are copied together.
"""

import os
from collections.abc import Collection, Iterable
from hashlib import sha256
from uuid import uuid4

from sqlalchemy import Engine, select
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from registry.blobs import BlobStore, StoredBlob, StoreMark
from registry.errors import RegistryMissing, StoreMismatch
from registry.reads.blob_references import holds_history
from registry.redaction import redact
from registry.schema.connections import is_in_memory, lock_name
from registry.schema.tables import RegistryIdentity
from registry.sessions import read_session, write_session


def stored_identity(session: Session) -> str | None:
    """Return the registry's identity; None before its first write."""
    return session.scalar(select(RegistryIdentity.name))


def ensure_identity(session: Session) -> str:
    """Return the registry's identity, created on first use."""
    if identity := stored_identity(session):
        return identity
    lock_name(session, RegistryIdentity.__tablename__)
    if identity := stored_identity(session):
        return identity
    row = RegistryIdentity(id=1, name=uuid4().hex)
    session.add(row)
    return row.name


def claim_store(engine: Engine, blobs: BlobStore) -> None:
    """Mark the blob store as this database's registry's; a registry in memory leaves no mark.

    A mark that was copied or moved with its store is renewed.

    Raises:
        StoreMismatch: The store belongs to another registry.
        RegistryMissing: It holds blobs and no mark, and no row of this registry names anything.
        BlobError: The store cannot be read or written.
    """
    with read_session(engine) as session:
        mark = require_own_store(session, blobs)
        if is_in_memory(engine):
            return
        if mark is None:
            require_history(session, blobs, blobs.iterate())
    expected_mark = mark_of(mark.registry if mark else _committed_identity(engine), engine.url, blobs)
    if mark is None or mark.blobs != expected_mark.blobs:
        blobs.set_mark(expected_mark)
        with read_session(engine) as session:
            require_own_store(session, blobs)  # another new registry may have marked it at the same moment


def require_restorable(session: Session, blobs: BlobStore, url: URL, *, dumped: Collection[str]) -> None:
    """Check that a dump, whose rows the session has, may be restored beside the blobs that are stored already.

    The dump's registry keeps its identity, so two databases that share a store could not tell their blobs apart: each
    would delete what only the other names. A copy of the store, and the database that marked it, are fine.

    Args:
        session: A session that sees the restored rows.
        blobs: The store.
        url: URL of the restored database.
        dumped: Digests of the dump's blobs.

    Raises:
        StoreMismatch: The store belongs to another registry, or to another database of this one.
    """
    mark = require_own_store(session, blobs)
    if mark is None:
        if others := sum(not blob.is_draft and blob.name not in dumped for blob in blobs.iterate()):
            raise StoreMismatch(
                f"{redact(blobs.url)} holds {others} blobs that the dump lacks, of another registry. Nothing "
                "was written. Restore into another --home, or to another CONTINUAL_BLOBS_URL."
            )
        return
    expected_mark = mark_of(mark.registry, url, blobs)
    if mark.blobs == expected_mark.blobs and mark.database != expected_mark.database:
        raise StoreMismatch(
            f"the blobs at {redact(blobs.url)} belong to the database that this dump was written from, at another "
            "place; two databases with one store would delete each other's blobs. Nothing was written. Restore into "
            "another --home (the dump holds every blob), or, if that database is lost, delete "
            f"{redact(blobs.mark_path)} and every blob beside it first."
        )


def _committed_identity(engine: Engine) -> str:
    # A mark must not name an identity that is rolled back afterwards.
    with write_session(engine) as session:
        return ensure_identity(session)


def mark_of(identity: str, url: URL, blobs: BlobStore) -> StoreMark:
    """Return the mark of a registry's store; locations are digests, since a store may be read by others."""
    if url.get_backend_name() == "sqlite":
        database = os.path.abspath(url.database or "")
    else:
        database = url.set(drivername=url.get_backend_name(), username=None, password=None, query={}).render_as_string()
    return StoreMark(registry=identity, database=_digest(database), blobs=_digest(blobs.url))


def _digest(location: str) -> str:
    return sha256(location.encode(errors="surrogatepass")).hexdigest()


def require_own_store(session: Session, blobs: BlobStore) -> StoreMark | None:
    """Return the mark of the blob store, which is this registry's; None where it has none yet.

    Raises:
        StoreMismatch: The store is marked as another registry's.
    """
    mark = blobs.mark()
    if mark and mark.registry != (identity := stored_identity(session)):
        raise mismatch_error(blobs, mark, identity)
    return mark


def require_history(session: Session, blobs: BlobStore, stored: Iterable[StoredBlob]) -> None:
    """Check that `stored` blobs are not all that there is: some row named a blob once.

    Raises:
        RegistryMissing: They are blobs, not drafts, and no row names anything.
    """
    if not holds_history(session) and (count := sum(not blob.is_draft for blob in stored)):
        raise RegistryMissing(
            f"the registry is empty, and {redact(blobs.url)} holds {count} blobs: they are those of another registry, "
            "or of a lost one. Nothing was deleted. Open the registry that they belong to, or delete the folder "
            "yourself if nothing in it is needed."
        )


def mismatch_error(blobs: BlobStore, mark: StoreMark, identity: str | None) -> StoreMismatch:
    """Return the error for a store that is marked as another registry's."""
    this_registry = f"registry {identity[:8]}" if identity else "a registry that never wrote to it"
    return StoreMismatch(
        f"the blobs at {redact(blobs.url)} belong to registry {mark.registry[:8]}, and this is {this_registry}. "
        "Nothing was written or deleted. Open the registry that they belong to (--home, CONTINUAL_REGISTRY_URL), or "
        "give this one its own blobs (CONTINUAL_BLOBS_URL); if they are its own all the same, delete "
        f"{redact(blobs.mark_path)}."
    )
