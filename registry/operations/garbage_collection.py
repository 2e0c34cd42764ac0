"""Garbage collection of unreferenced blobs, and of drafts whose writers died.

A blob is stored before the row that references it, so a young blob may belong to a writer that is about to commit: only
blobs older than a grace period are deleted. A slower writer is safe too: blobs are deleted in an exclusive unit of
work, and a unit that references a blob first checks that it is stored.
"""

from datetime import timedelta

from registry.blobs import StoredBlob
from registry.derived import delete_stale, stale_files
from registry.ownership import require_history
from registry.registry import Registry
from registry.unreferenced import delete_if_unreferenced, list_unreferenced

GRACE_PERIOD = timedelta(hours=1)


def collect_garbage(
    registry: Registry, *, older_than: timedelta = GRACE_PERIOD, dry_run: bool = False
) -> list[StoredBlob]:
    """Delete blobs that no row references and that were last put longer ago than `older_than`, and stale derived files.

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
        return list_unreferenced(registry.engine, old) + stale_files(registry)
    registry.claim_store()
    return delete_stale(registry) + delete_if_unreferenced(registry.engine, registry.blobs, old, put_before=oldest)
