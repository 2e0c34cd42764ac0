"""Deletion of blobs that no row references any more.

It happens in an exclusive transaction, and a unit of work that references a blob first checks that it is stored.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import Engine

from registry.blobs import BlobStore, StoredBlob
from registry.reads.blob_references import referenced_among
from registry.sessions import read_session, write_session

BATCH_SIZE = 500  # blobs per exclusive transaction, while writers wait


def delete_unreferenced(engine: Engine, blobs: BlobStore, digests: Iterable[str]) -> list[StoredBlob]:
    """Delete those of `digests` that no row references, at once; return the deleted blobs."""
    stored = [blob for digest in sorted(digests) if (blob := blobs.stat(digest))]
    return delete_if_unreferenced(engine, blobs, stored)


def delete_if_unreferenced(
    engine: Engine, store: BlobStore, blobs: Sequence[StoredBlob], *, put_before: datetime | None = None
) -> list[StoredBlob]:
    """Delete those of `blobs` that no row references.

    Args:
        engine: The registry's database.
        store: The store of the blobs.
        blobs: Stored blobs.
        put_before: Keep what was put again after this time, by the store's clock; None keeps nothing.

    Returns:
        The deleted blobs.
    """
    batches = (blobs[first : first + BATCH_SIZE] for first in range(0, len(blobs), BATCH_SIZE))
    return [blob for batch in batches for blob in _delete_batch(engine, store, batch, put_before)]


def list_unreferenced(engine: Engine, blobs: Sequence[StoredBlob]) -> list[StoredBlob]:
    """Return those of `blobs` that no row references."""
    referenced: set[str] = set()
    with read_session(engine) as session:
        for first in range(0, len(blobs), BATCH_SIZE):
            referenced |= referenced_among(session, [blob.name for blob in blobs[first : first + BATCH_SIZE]])
    return [blob for blob in blobs if blob.name not in referenced]


def _delete_batch(
    engine: Engine, store: BlobStore, blobs: Sequence[StoredBlob], put_before: datetime | None
) -> list[StoredBlob]:
    if not (unreferenced := list_unreferenced(engine, blobs)):
        return []  # no exclusive transaction needed
    with write_session(engine, exclusive=True) as session:
        referenced = referenced_among(session, [blob.name for blob in unreferenced])
        return [
            blob for blob in unreferenced if blob.name not in referenced and store.delete(blob, put_before=put_before)
        ]
