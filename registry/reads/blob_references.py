"""Which blobs the rows name: what must be there, and what may not be collected."""

from collections.abc import Collection, Iterator

from sqlalchemy import ColumnElement, select, union_all
from sqlalchemy.orm import Session

from registry.schema.strategy_tables import StrategyRun
from registry.schema.tables import Checkpoint, Delta, Position, Signature, Stream

CHUNK_SIZE = 1000  # rows
OF_DELTAS = {
    "values": Delta.digest,
    "predictions": Delta.predictions,
    "replay": Delta.replay,
    "signature": Signature.digest,
    "routing": Signature.routing,
}


def referenced_blobs(session: Session) -> Iterator[tuple[str, str]]:
    """Every digest that a row names, with whose it is."""
    for delta, digests in blobs_by_delta(session):
        yield from ((f"{delta.name}, its {part}", digest) for part, digest in digests.items())
    yield from blobs_by_position(session)
    yield from blobs_by_strategy(session)


def blobs_by_delta(session: Session) -> Iterator[tuple[Delta, dict[str, str]]]:
    """Every delta with the digests that it names, by what they are of."""
    named = select(Delta, *OF_DELTAS.values()).outerjoin(Signature, Signature.delta_id == Delta.id)
    for delta, *digests in session.execute(named.order_by(Delta.id).execution_options(yield_per=CHUNK_SIZE)):
        yield delta, {part: digest for part, digest in zip(OF_DELTAS, digests, strict=True) if digest is not None}


def blobs_by_position(session: Session) -> Iterator[tuple[str, str]]:
    """The digest of every checkpoint, with whose it is."""
    begun = select(Stream.name, Position.number, Checkpoint.digest).select_from(Checkpoint)
    begun = begun.join(Position, Position.id == Checkpoint.position_id).join(Stream, Stream.id == Position.stream_id)
    for stream, number, digest in session.execute(begun.order_by(Checkpoint.id)):
        yield f"stream {stream}, position {number}, its checkpoint", digest


def blobs_by_strategy(session: Session) -> Iterator[tuple[str, str]]:
    """The digest of what each strategy goes on from, with whose it is."""
    begun = select(Stream.name, StrategyRun.strategy, StrategyRun.state).select_from(StrategyRun)
    begun = begun.join(Stream, Stream.id == StrategyRun.stream_id)
    for stream, strategy, digest in session.execute(begun.order_by(StrategyRun.id)):
        if digest is not None:
            yield f"stream {stream}, strategy {strategy}, its state", digest


def referenced_by(session: Session, deltas: ColumnElement[bool], positions: ColumnElement[bool]) -> Iterator[str]:
    """The digests that these deltas and positions name."""
    own = select(*OF_DELTAS.values()).select_from(Delta).outerjoin(Signature, Signature.delta_id == Delta.id)
    for digests in session.execute(own.where(deltas)):
        yield from (digest for digest in digests if digest is not None)
    begun = select(Checkpoint.digest).join(Position, Position.id == Checkpoint.position_id)
    yield from session.scalars(begun.where(positions))


def referenced_among(session: Session, digests: Collection[str]) -> set[str]:
    """Those of `digests` that a row names."""
    columns = (*OF_DELTAS.values(), Checkpoint.digest, StrategyRun.state)
    found = [select(column).where(column.in_(digests)) for column in columns]
    return {digest for (digest,) in session.execute(union_all(*found)) if digest is not None}
