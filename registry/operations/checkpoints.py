"""Checkpoints of learning: one blob per position to resume from, replaced by each later one."""

from typing import TypeVar

from sqlalchemy import Select, select

from registry.errors import ClaimLost
from registry.reads.lookups import position_row
from registry.registry import Registry
from registry.schema.tables import Checkpoint, Position, Stream
from registry.unit_of_work import UnitOfWork
from registry.writes.checkpoints import delete_checkpoint

_Value = TypeVar("_Value", int, str)


def save_checkpoint(registry: Registry, stream: str, *, number: int, holder: str, epoch: int, data: bytes) -> None:
    """Store a checkpoint of a position and delete the previous one.

    Args:
        registry: The registry.
        stream: The stream's name.
        number: The position's number.
        holder: The process that learns it.
        epoch: Number of completed epochs.
        data: The serialised training state.

    Raises:
        ClaimLost: `holder` no longer holds the position.
        BlobError: The bytes cannot be stored.
    """
    digest = registry.blobs.put(data)

    def work(unit: UnitOfWork) -> None:
        position = position_row(unit.session, stream, number=number)
        if position.holder != holder:
            raise ClaimLost(f"position {number} of {stream!r} is no longer held by {holder}. Claim it again.")
        unit.require_blobs(digest)
        unit.drop_blobs(delete_checkpoint(unit.session, position))
        unit.session.add(Checkpoint(position_id=position.id, epoch=epoch, digest=digest))
        if position.submitted_at is not None:  # progress: earlier deaths no longer count
            position.attempts = 1

    registry.write_with_retry(work)


def load_checkpoint(registry: Registry, stream: str, *, number: int) -> bytes | None:
    """Return the last checkpoint of a position that is not learned yet; None if there is none.

    Raises:
        BlobError: Its blob is missing or damaged.
    """
    with registry.read_session() as session:
        digest = session.scalar(_of_checkpoint(select(Checkpoint.digest), stream, number))
    return None if digest is None else registry.blobs.get(digest)


def checkpoint_epoch(registry: Registry, stream: str, *, number: int) -> int | None:
    """Return the number of completed epochs in a position's checkpoint; None if there is none."""
    with registry.read_session() as session:
        return session.scalar(_of_checkpoint(select(Checkpoint.epoch), stream, number))


def _of_checkpoint(query: Select[_Value], stream: str, number: int) -> Select[_Value]:
    """Restrict a query of checkpoints to one position."""
    joined = query.join(Position, Position.id == Checkpoint.position_id)
    return joined.join(Stream, Stream.id == Position.stream_id).where(Stream.name == stream, Position.number == number)
