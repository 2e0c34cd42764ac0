"""Deleting the checkpoint of a position that is learned, cancelled or checkpointed again."""

from collections.abc import Sequence

from sqlalchemy import delete
from sqlalchemy.orm import Session

from registry.schema.tables import Checkpoint, Position


def delete_checkpoint(session: Session, position: Position) -> Sequence[str]:
    """Delete the row of a position's checkpoint; return the digest of its blob, or nothing."""
    deleted = delete(Checkpoint).where(Checkpoint.position_id == position.id).returning(Checkpoint.digest)
    return session.scalars(deleted).all()
