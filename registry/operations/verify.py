"""What is wrong with a registry: damage that no constraint could keep out. Nothing is mended here."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from sqlalchemy import String, and_, cast, func, or_, select
from sqlalchemy.orm import Session

from registry.blobs import BlobStore
from registry.errors import BlobError
from registry.names import delta_name
from registry.operations.garbage_collection import GRACE_PERIOD
from registry.reads.blob_references import blobs_by_delta, blobs_by_position, blobs_by_strategy, referenced_blobs
from registry.reads.lookups import own_score_join
from registry.reads.mapping import to_delta_record
from registry.records import IMPORTED, StoredDelta
from registry.registry import Registry
from registry.schema.base import Base, database_now, now
from registry.schema.score_tables import ScoreRow
from registry.schema.tables import Backbone, Checkpoint, Delta, OutboxRow, Position, Stream, Task

# What is wrong with a delta whose blobs, by what they are of, are as they were put.
BlobCheck = Callable[[StoredDelta, Mapping[str, bytes]], Iterable[str]]


def find_damage(registry: Registry, look: BlobCheck = lambda delta, blobs: ()) -> list[str]:
    """One sentence for each thing that is wrong; empty where nothing is. Reads every blob, and lets `look` at it."""
    with registry.read_session() as session:
        return [
            *_dangling(session),
            *_rivals(session),
            *_unlearned(session),
            *_unscored(session),
            *_unknown_messages(session),
            *_damaged(session, registry.blobs, look),
        ]


def warnings(registry: Registry) -> list[str]:
    """What is no damage and yet worth knowing: a sentence for each."""
    with registry.read_session() as session:
        return [*_expired(session), *_left_over(session), *_orphans(session, registry.blobs)]


def _dangling(session: Session) -> Iterator[str]:
    """Rows whose foreign key points nowhere; possible where a tool wrote with foreign keys switched off."""
    for table in Base.metadata.sorted_tables:
        for key in sorted(table.foreign_keys, key=lambda key: key.parent.name):
            target = key.column.table.alias()
            lost = select(table.c.id, key.parent).outerjoin(target, target.c.id == key.parent)
            for identity, missing in session.execute(lost.where(key.parent.is_not(None), target.c.id.is_(None))):
                yield f"{table.name} row {identity}: {key.parent.name} {missing} is no row of {key.column.table.name}"


def _rivals(session: Session) -> Iterator[str]:
    """Tasks with more than one champion on a backbone."""
    pairs = select(Task.name, Backbone.name, func.count()).select_from(Delta).join(Delta.task).join(Delta.backbone)
    several = pairs.where(Delta.status == "champion").group_by(Task.id, Backbone.id).having(func.count() > 1)
    for task, backbone, champions in session.execute(several.order_by(Task.name)):
        yield f"task {task}: {champions} champions on backbone {backbone}, where one may serve"


def _unlearned(session: Session) -> Iterator[str]:
    """Positions marked as learned that name no delta, and those that name one of another task, or too early."""
    found = select(Stream.name, Position.number, Position.task_name, Position.state, Task.name, Delta.version)
    found = found.select_from(Position).join(Stream, Stream.id == Position.stream_id)
    found = found.outerjoin(Delta, Delta.id == Position.delta_id).outerjoin(Task, Task.id == Delta.task_id)
    without = and_(Position.state == "learned", Position.delta_id.is_(None))
    early = and_(Position.state != "learned", Position.delta_id.is_not(None))
    wrong = or_(without, early, Task.name != Position.task_name)
    for stream, number, task, state, other, version in session.execute(found.where(wrong).order_by(Position.id)):
        names = "no delta" if other is None else delta_name(other, version)
        yield f"stream {stream}, position {number}: {task} is marked as {state}, but names {names}"


def _unscored(session: Session) -> Iterator[str]:
    """Deltas learned here without a score on the test split with the task known."""
    pairs = select(Task.name, Delta.version).select_from(Delta).join(Task, Task.id == Delta.task_id)
    measured = pairs.outerjoin(ScoreRow, and_(ScoreRow.delta_id == Delta.id, *own_score_join("test")))
    missing = measured.where(ScoreRow.id.is_(None), Delta.warm_start != IMPORTED, Delta.status != "purged")
    for pair in session.execute(missing.order_by(Delta.id)):
        yield f"{delta_name(*pair)}: no oracle score on the test split"


def _unknown_messages(session: Session) -> Iterator[str]:
    """Messages for MLflow of what is not registered."""
    deltas = select(Task.name + "@" + cast(Delta.version, String)).select_from(Delta).join(Delta.task)
    known = {"delta": deltas, "stream": select(Stream.name), "champion": select(Task.name)}
    for message, names in known.items():
        lost = select(OutboxRow.subject).where(OutboxRow.message == message, OutboxRow.subject.not_in(names))
        for subject in session.scalars(lost.order_by(OutboxRow.id)):
            yield f"MLflow is to be told of {message} {subject}, which is not registered"


def _damaged(session: Session, blobs: BlobStore, look: BlobCheck) -> Iterator[str]:
    """Blobs that a row names and that are missing, have other bytes, or are not what the row says."""
    for delta, digests in blobs_by_delta(session):
        found, problems = _got(blobs, {f"{delta.name}, its {part}": digest for part, digest in digests.items()})
        yield from problems
        if delta.digest is None:
            yield from (f"{owner}: named by what was purged" for owner in found)
        else:
            whole = {owner.rpartition(" ")[2]: data for owner, data in found.items()}
            yield from (f"{delta.name}: {problem}" for problem in look(to_delta_record(delta), whole))
    for owner, digest in (*blobs_by_position(session), *blobs_by_strategy(session)):
        yield from _got(blobs, {owner: digest})[1]


def _got(blobs: BlobStore, digests: Mapping[str, str]) -> tuple[dict[str, bytes], list[str]]:
    """The bytes by owner, and what is wrong with those that are not there."""
    found, problems = {}, []
    for owner, digest in digests.items():
        try:
            found[owner] = blobs.get(digest)
        except BlobError as error:
            problems.append(f"{owner}: {error}")
    return found, problems


def _expired(session: Session) -> Iterator[str]:
    held = select(Stream.name, Position).join(Stream, Stream.id == Position.stream_id)
    late = held.where(Position.state == "held", Position.lease_until < database_now(session)).order_by(Position.id)
    for stream, position in session.execute(late):
        yield (
            f"stream {stream}, position {position.number}: {position.holder} has held {position.task_name} since "
            "before its lease ended; the next run takes it over"
        )


def _left_over(session: Session) -> Iterator[str]:
    begun = select(Stream.name, Position.number).join(Stream, Stream.id == Position.stream_id)
    over = begun.join(Checkpoint, Checkpoint.position_id == Position.id).where(Position.state == "learned")
    for stream, number in session.execute(over.order_by(Position.id)):
        yield f"stream {stream}, position {number}: learned, and its checkpoint is still kept"


def _orphans(session: Session, blobs: BlobStore) -> Iterator[str]:
    """Blobs that no row names; young ones may be about to be named."""
    named, young = {digest for _, digest in referenced_blobs(session)}, now() - GRACE_PERIOD
    sizes = [blob.bytes for blob in blobs.iterate() if blob.name not in named and blob.put_at < young]
    if sizes:
        yield f"{len(sizes)} blobs of {sum(sizes):,} bytes are named by no row; `continual gc` removes them"
