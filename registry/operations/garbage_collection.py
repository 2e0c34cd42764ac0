"""Garbage collection: blobs that no row names, and drafts that their writers left behind.

A blob is put before the row that names it, so a young one may be somebody's who is about to write: only what is older
than a time of grace is taken. Whoever needs longer finds out: blobs are deleted while no other unit of work is open,
and a unit that names one first looks whether it is there.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from registry.blobs import StoredBlob
from registry.reads.blob_references import referenced_among
from registry.registry import Registry

GRACE_PERIOD = timedelta(hours=1)
BATCH = 500  # blobs deleted while others wait to write


def collect_garbage(
    registry: Registry, *, older_than: timedelta = GRACE_PERIOD, dry_run: bool = False
) -> list[StoredBlob]:
    """Deletes what no row names and nobody has put again for so long; what that was, or with `dry_run` would be.

    Age is told by the clock of the place where the blobs are, whatever this host's says.
    """
    oldest = registry.blobs.store_now() - older_than
    old = [blob for blob in registry.blobs.iterate() if blob.put_at <= oldest]
    if dry_run:
        return [blob for batch in _batches(old) for blob in _unnamed(registry, batch)]
    return [blob for batch in _batches(old) for blob in _swept(registry, batch, oldest)]


def delete_unreferenced(registry: Registry, digests: Iterable[str]) -> list[StoredBlob]:
    """Deletes at once those of `digests` that no row names; what that was."""
    there = [blob for digest in sorted(digests) if (blob := registry.blobs.stat(digest))]
    return [blob for batch in _batches(there) for blob in _swept(registry, batch, oldest=None)]


def _batches(blobs: Sequence[StoredBlob]) -> Iterable[Sequence[StoredBlob]]:
    return (blobs[first : first + BATCH] for first in range(0, len(blobs), BATCH))


def _unnamed(registry: Registry, blobs: Sequence[StoredBlob]) -> list[StoredBlob]:
    with registry.read_session() as session:
        named = referenced_among(session, [blob.name for blob in blobs])
    return [blob for blob in blobs if blob.name not in named]


def _swept(registry: Registry, blobs: Sequence[StoredBlob], oldest: datetime | None) -> list[StoredBlob]:
    swept = []
    if not (unnamed := {blob.name for blob in _unnamed(registry, blobs)}):
        return []  # nobody has to wait
    with registry.unit_of_work(alone=True) as unit:
        named = referenced_among(unit.session, unnamed)
        for blob in blobs:
            if blob.name in unnamed - named and registry.blobs.delete(blob, put_before=oldest):
                swept.append(blob)
    return swept
