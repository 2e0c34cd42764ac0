"""Queries of the blobs that rows reference: these must exist and must not be collected."""

from collections.abc import Collection, Iterator

from sqlalchemy import ColumnElement, select, union_all
from sqlalchemy.orm import Session

from registry.schema.strategy_tables import StrategyRun
from registry.schema.tables import Checkpoint, Delta, Position, Signature, Stream

CHUNK_SIZE = 1000  # rows per fetch
DELTA_BLOB_COLUMNS = {
    "values": Delta.digest,
    "predictions": Delta.predictions,
    "replay": Delta.replay,
    "signature": Signature.digest,
    "routing": Signature.routing,
}


def referenced_blobs(session: Session) -> Iterator[tuple[str, str]]:
    """Yield (owner, digest) of every referenced blob; the owner in words."""
    for delta, digests in blobs_by_delta(session):
        yield from ((f"{delta.name}, its {part}", digest) for part, digest in digests.items())
    yield from blobs_by_position(session)
    yield from blobs_by_strategy(session)


def holds_history(session: Session) -> bool:
    """Return whether a delta, a position or a strategy run is or was registered: what blobs are stored for."""
    return any(session.scalar(select(table.id).limit(1)) for table in (Delta, Position, StrategyRun))


def blobs_by_delta(session: Session) -> Iterator[tuple[Delta, dict[str, str]]]:
    """Yield every delta with the digests of its blobs, by part."""
    query = select(Delta, *DELTA_BLOB_COLUMNS.values()).outerjoin(Signature, Signature.delta_id == Delta.id)
    for delta, *digests in session.execute(query.order_by(Delta.id).execution_options(yield_per=CHUNK_SIZE)):
        yield (
            delta,
            {part: digest for part, digest in zip(DELTA_BLOB_COLUMNS, digests, strict=True) if digest is not None},
        )


def blobs_by_position(session: Session) -> Iterator[tuple[str, str]]:
    """Yield (owner, digest) of every checkpoint."""
    query = select(Stream.name, Position.number, Checkpoint.digest).select_from(Checkpoint)
    query = query.join(Position, Position.id == Checkpoint.position_id).join(Stream, Stream.id == Position.stream_id)
    for stream, number, digest in session.execute(query.order_by(Checkpoint.id)):
        yield f"stream {stream}, position {number}, its checkpoint", digest


def blobs_by_strategy(session: Session) -> Iterator[tuple[str, str]]:
    """Yield (owner, digest) of every strategy run's state."""
    query = select(Stream.name, StrategyRun.strategy, StrategyRun.state).select_from(StrategyRun)
    query = query.join(Stream, Stream.id == StrategyRun.stream_id)
    for stream, strategy, digest in session.execute(query.order_by(StrategyRun.id)):
        if digest is not None:
            yield f"stream {stream}, strategy {strategy}, its state", digest


def referenced_by(session: Session, deltas: ColumnElement[bool], positions: ColumnElement[bool]) -> Iterator[str]:
    """Yield the digests that the selected deltas and positions reference.

    Args:
        session: A session.
        deltas: Condition on `Delta`.
        positions: Condition on `Position`.
    """
    delta_digests = (
        select(*DELTA_BLOB_COLUMNS.values()).select_from(Delta).outerjoin(Signature, Signature.delta_id == Delta.id)
    )
    for digests in session.execute(delta_digests.where(deltas)):
        yield from (digest for digest in digests if digest is not None)
    checkpoint_digests = select(Checkpoint.digest).join(Position, Position.id == Checkpoint.position_id)
    yield from session.scalars(checkpoint_digests.where(positions))


def referenced_among(session: Session, digests: Collection[str]) -> set[str]:
    """Return those of `digests` that a row references."""
    columns = (*DELTA_BLOB_COLUMNS.values(), Checkpoint.digest, StrategyRun.state)
    queries = [select(column).where(column.in_(digests)) for column in columns]
    return {digest for (digest,) in session.execute(union_all(*queries)) if digest is not None}
