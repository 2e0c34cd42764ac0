"""Garbage collection of unreferenced blobs, and of drafts whose writers died.

A blob is stored before the row that references it, so a young blob may belong to a writer that is about to commit: only
blobs older than a grace period are deleted. A slower writer is safe too: blobs are deleted in an exclusive unit of
work, and a unit that references a blob first checks that it is stored.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from registry.blobs import StoredBlob
from registry.ownership import require_history
from registry.reads.blob_references import referenced_among
from registry.registry import Registry

GRACE_PERIOD = timedelta(hours=1)
BATCH_SIZE = 500  # blobs per exclusive unit of work, while writers wait


def collect_garbage(
    registry: Registry, *, older_than: timedelta = GRACE_PERIOD, dry_run: bool = False
) -> list[StoredBlob]:
    """Delete blobs that no row references and that were last put longer ago than `older_than`.

    Age is measured by the store's clock, not by this host's.

    Args:
        registry: The registry.
        older_than: The grace period.
        dry_run: Only return what would be deleted.

    Returns:
        The deleted blobs.

    Raises:
        RegistryMissing: No row names anything, though the store holds blobs: they are another registry's, or a lost
            one's.
        StoreMismatch: The store belongs to another registry.
    """
    registry.require_own_store()
    oldest = registry.blobs.store_now() - older_than
    old = [blob for blob in registry.blobs.iterate() if blob.put_at <= oldest]
    with registry.read_session() as session:
        require_history(session, registry.blobs, old)
    if dry_run:
        return [blob for batch in _batches(old) for blob in _unreferenced(registry, batch)]
    return [blob for batch in _batches(old) for blob in _delete_batch(registry, batch, oldest)]


def delete_unreferenced(registry: Registry, digests: Iterable[str]) -> list[StoredBlob]:
    """Delete those of `digests` that no row references, at once; return the deleted blobs."""
    stored = [blob for digest in sorted(digests) if (blob := registry.blobs.stat(digest))]
    return [blob for batch in _batches(stored) for blob in _delete_batch(registry, batch, oldest=None)]


def _batches(blobs: Sequence[StoredBlob]) -> Iterable[Sequence[StoredBlob]]:
    return (blobs[first : first + BATCH_SIZE] for first in range(0, len(blobs), BATCH_SIZE))


def _unreferenced(registry: Registry, blobs: Sequence[StoredBlob]) -> list[StoredBlob]:
    with registry.read_session() as session:
        referenced = referenced_among(session, [blob.name for blob in blobs])
    return [blob for blob in blobs if blob.name not in referenced]


def _delete_batch(registry: Registry, blobs: Sequence[StoredBlob], oldest: datetime | None) -> list[StoredBlob]:
    deleted = []
    if not (unreferenced := {blob.name for blob in _unreferenced(registry, blobs)}):
        return []  # no exclusive unit needed
    with registry.unit_of_work(exclusive=True) as unit:
        referenced = referenced_among(unit.session, unreferenced)
        for blob in blobs:
            if blob.name in unreferenced - referenced and registry.blobs.delete(blob, put_before=oldest):
                deleted.append(blob)
    return deleted
