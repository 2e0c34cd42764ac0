"""How far the learning of a position has come: one blob to go on from, replaced as it gets further."""

from typing import TypeVar

from sqlalchemy import Select, delete, select

from registry.errors import ClaimLost
from registry.operations.garbage_collection import delete_unreferenced
from registry.reads.lookups import position_row
from registry.registry import Registry
from registry.schema.tables import Checkpoint, Position, Stream
from registry.unit_of_work import UnitOfWork

_Value = TypeVar("_Value", int, str)


def save_checkpoint(registry: Registry, stream: str, *, number: int, holder: str, epoch: int, data: bytes) -> None:
    """Stores what to go on from after `epoch`, in place of what was stored before.

    Raises: ClaimLost, where `holder` does not hold the position any more; BlobError, where the bytes cannot be stored.
    """
    digest = registry.blobs.put(data)

    def work(unit: UnitOfWork) -> list[str]:
        position = position_row(unit.session, stream, number=number)
        if position.holder != holder:
            raise ClaimLost(f"position {number} of {stream!r} is no longer held by {holder}. Claim it again.")
        unit.require_blobs(digest)
        of_position = Checkpoint.position_id == position.id
        replaced = unit.session.scalars(select(Checkpoint.digest).where(of_position)).all()
        unit.session.execute(delete(Checkpoint).where(of_position))
        unit.session.add(Checkpoint(position_id=position.id, epoch=epoch, digest=digest))
        if position.submitted_at is not None:  # who dies now has got further than those who died before
            position.attempts = 1
        return [before for before in replaced if before != digest]

    delete_unreferenced(registry, registry.write_with_retry(work))


def load_checkpoint(registry: Registry, stream: str, *, number: int) -> bytes | None:
    """What was stored last for a position that is not learned yet; None where nothing was.

    Raises: BlobError, where it is missing or damaged.
    """
    with registry.read_session() as session:
        digest = session.scalar(_kept(select(Checkpoint.digest), stream, number))
    return None if digest is None else registry.blobs.get(digest)


def checkpoint_epoch(registry: Registry, stream: str, *, number: int) -> int | None:
    """The epoch after which a position that is not learned yet was kept last; None where it never was."""
    with registry.read_session() as session:
        return session.scalar(_kept(select(Checkpoint.epoch), stream, number))


def _kept(question: Select[_Value], stream: str, number: int) -> Select[_Value]:
    """What is asked of the checkpoint of a position."""
    of_position = question.join(Position, Position.id == Checkpoint.position_id)
    return of_position.join(Stream, Stream.id == Position.stream_id).where(
        Stream.name == stream, Position.number == number
    )
