"""Integrity checks of a registry beyond what database constraints enforce; nothing is repaired."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from sqlalchemy import String, and_, cast, func, or_, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from registry.blobs import BlobStore
from registry.errors import BlobError, StoreMismatch
from registry.names import delta_name
from registry.operations.garbage_collection import GRACE_PERIOD
from registry.ownership import require_own_store
from registry.reads.blob_references import (
    blobs_by_delta,
    blobs_by_position,
    blobs_by_strategy,
    holds_history,
    referenced_blobs,
)
from registry.reads.lookups import main_score_filter
from registry.reads.mapping import stored_delta
from registry.records import IMPORTED, StoredDelta
from registry.redaction import redact
from registry.registry import Registry
from registry.schema.base import Base, database_now, now
from registry.schema.connections import UNREADABLE_ROWS, is_damage
from registry.schema.file_damage import file_damage
from registry.schema.score_tables import ScoreRow
from registry.schema.tables import Backbone, Checkpoint, Delta, OutboxRow, Position, Stream, Task

# Yields problems of a delta, given its intact blobs by part.
BlobCheck = Callable[[StoredDelta, Mapping[str, bytes]], Iterable[str]]


def find_damage(registry: Registry, check_blobs: BlobCheck = lambda delta, blobs: ()) -> list[str]:
    """Check all rows and blobs of a registry.

    Args:
        registry: The registry.
        check_blobs: Yields problems of a delta's blobs, given by part.

    Returns:
        One sentence per problem.
    """
    with registry.read_session() as session:
        foreign = _foreign_blobs(session, registry.blobs)
        damaged = _damaged_blobs(session, registry.blobs, check_blobs)
        return [*dict.fromkeys((*_readable(foreign), *_row_damage(registry, session), *_readable(damaged)))]


def find_row_damage(registry: Registry) -> list[str]:
    """Check all rows of a registry, and no blobs; return one sentence per problem."""
    with registry.read_session() as session:
        return [*dict.fromkeys(_row_damage(registry, session))]


def _row_damage(registry: Registry, session: Session) -> Iterator[str]:
    yield from file_damage(registry.url)
    for check in (
        _lost_rows(session, registry.blobs),
        _dangling_keys(session),
        _duplicate_champions(session),
        _inconsistent_positions(session),
        _unscored_deltas(session),
        _unknown_messages(session),
    ):
        yield from _readable(check)


def warnings(registry: Registry) -> list[str]:
    """Return one sentence for each irregularity that is not damage."""
    with registry.read_session() as session:
        checks = (
            _expired_leases(session),
            _leftover_checkpoints(session),
            _orphan_blobs(session, registry.blobs),
            _damaged_derived_files(registry.blobs),
        )
        return [note for check in checks for note in _readable(check)]


def _readable(problems: Iterator[str]) -> Iterator[str]:
    """Yield the problems of one check, and one more where it meets rows that cannot be read."""
    try:
        yield from problems
    except UNREADABLE_ROWS as error:
        if isinstance(error, DBAPIError) and not is_damage(error):
            raise  # the database is busy, or does not answer any more
        reason = error.orig if isinstance(error, DBAPIError) else f"{type(error).__name__}: {error}"
        yield f"rows cannot be read: {reason}. Restore the database from a copy"


def _foreign_blobs(session: Session, blobs: BlobStore) -> Iterator[str]:
    """Yield a sentence where the blob store is marked as another registry's."""
    try:
        require_own_store(session, blobs)
    except StoreMismatch as error:
        yield str(error)


def _lost_rows(session: Session, blobs: BlobStore) -> Iterator[str]:
    """Yield a sentence where nothing was ever registered, though blobs are stored."""
    if not holds_history(session) and (count := sum(not blob.is_draft for blob in blobs.iterate())):
        yield (
            f"the registry is empty, and {redact(blobs.url)} holds {count} blobs: they are those of another registry, "
            "or of a lost one. Restore the database from a copy, or give the place where it is"
        )


def _dangling_keys(session: Session) -> Iterator[str]:
    """Yield foreign keys without a target, possible where a tool wrote with foreign keys disabled."""
    for table in Base.metadata.sorted_tables:
        for key in sorted(table.foreign_keys, key=lambda key: key.parent.name):
            target = key.column.table.alias()
            broken = select(table.c.id, key.parent).outerjoin(target, target.c.id == key.parent)
            for row_id, missing_id in session.execute(broken.where(key.parent.is_not(None), target.c.id.is_(None))):
                yield f"{table.name} row {row_id}: {key.parent.name} {missing_id} is no row of {key.column.table.name}"


def _duplicate_champions(session: Session) -> Iterator[str]:
    """Yield tasks with more than one champion on a backbone."""
    pairs = select(Task.name, Backbone.name, func.count()).select_from(Delta).join(Delta.task).join(Delta.backbone)
    duplicates = pairs.where(Delta.status == "champion").group_by(Task.id, Backbone.id).having(func.count() > 1)
    for task, backbone, champions in session.execute(duplicates.order_by(Task.name)):
        yield f"task {task}: {champions} champions on backbone {backbone}, where one may serve"


def _inconsistent_positions(session: Session) -> Iterator[str]:
    """Yield learned positions without a delta, and positions whose delta is premature or of another task."""
    query = select(Stream.name, Position.number, Position.task_name, Position.state, Task.name, Delta.version)
    query = query.select_from(Position).join(Stream, Stream.id == Position.stream_id)
    query = query.outerjoin(Delta, Delta.id == Position.delta_id).outerjoin(Task, Task.id == Delta.task_id)
    lacks_delta = and_(Position.state == "learned", Position.delta_id.is_(None))
    has_early_delta = and_(Position.state != "learned", Position.delta_id.is_not(None))
    is_wrong = or_(lacks_delta, has_early_delta, Task.name != Position.task_name)
    for stream, number, task, state, delta_task, version in session.execute(
        query.where(is_wrong).order_by(Position.id)
    ):
        actual = "no delta" if delta_task is None else delta_name(delta_task, version)
        yield f"stream {stream}, position {number}: {task} is marked as {state}, but names {actual}"


def _unscored_deltas(session: Session) -> Iterator[str]:
    """Yield deltas learned here without an oracle score on the test split."""
    pairs = select(Task.name, Delta.version).select_from(Delta).join(Task, Task.id == Delta.task_id)
    joined = pairs.outerjoin(ScoreRow, and_(ScoreRow.delta_id == Delta.id, *main_score_filter("test")))
    unscored = joined.where(ScoreRow.id.is_(None), Delta.warm_start != IMPORTED, Delta.status != "purged")
    for pair in session.execute(unscored.order_by(Delta.id)):
        yield f"{delta_name(*pair)}: no oracle score on the test split"


def _unknown_messages(session: Session) -> Iterator[str]:
    """Yield outbox messages about unregistered subjects."""
    deltas = select(Task.name + "@" + cast(Delta.version, String)).select_from(Delta).join(Delta.task)
    names_by_topic = {"delta": deltas, "stream": select(Stream.name), "champion": select(Task.name)}
    for message, names in names_by_topic.items():
        unknown = select(OutboxRow.subject).where(OutboxRow.message == message, OutboxRow.subject.not_in(names))
        for subject in session.scalars(unknown.order_by(OutboxRow.id)):
            yield f"a message for MLflow is about {message} {subject}, which is not registered"


def _damaged_blobs(session: Session, blobs: BlobStore, check_blobs: BlobCheck) -> Iterator[str]:
    """Yield referenced blobs that are missing, changed or inconsistent with their row."""
    for delta, digests in blobs_by_delta(session):
        data_by_owner, problems = _read_blobs(
            blobs, {f"{delta.name}, its {part}": digest for part, digest in digests.items()}
        )
        yield from problems
        if delta.digest is None:
            yield from (f"{owner}: referenced by a purged delta" for owner in data_by_owner)
        else:
            data_by_part = {owner.rpartition(" ")[2]: data for owner, data in data_by_owner.items()}
            yield from (f"{delta.name}: {problem}" for problem in check_blobs(stored_delta(delta), data_by_part))
    for owner, digest in (*blobs_by_position(session), *blobs_by_strategy(session)):
        yield from _read_blobs(blobs, {owner: digest})[1]


def _read_blobs(blobs: BlobStore, digests: Mapping[str, str]) -> tuple[dict[str, bytes], list[str]]:
    """Return the bytes by owner, and the problems of blobs that cannot be read."""
    data_by_owner, problems = {}, []
    for owner, digest in digests.items():
        try:
            data_by_owner[owner] = blobs.get(digest)
        except BlobError as error:
            problems.append(f"{owner}: {error}")
    return data_by_owner, problems


def _expired_leases(session: Session) -> Iterator[str]:
    query = select(Stream.name, Position).join(Stream, Stream.id == Position.stream_id)
    expired = query.where(Position.state == "held", Position.lease_until < database_now(session)).order_by(Position.id)
    for stream, position in session.execute(expired):
        yield (
            f"stream {stream}, position {position.number}: {position.holder} has held {position.task_name} since "
            "before its lease ended; the next run takes it over"
        )


def _leftover_checkpoints(session: Session) -> Iterator[str]:
    joined = select(Stream.name, Position.number).join(Stream, Stream.id == Position.stream_id)
    left_over = joined.join(Checkpoint, Checkpoint.position_id == Position.id).where(Position.state == "learned")
    for stream, number in session.execute(left_over.order_by(Position.id)):
        yield f"stream {stream}, position {number}: learned, and its checkpoint is still kept"


def _damaged_derived_files(blobs: BlobStore) -> Iterator[str]:
    for file in blobs.iterate_derived():
        if blobs.get_derived(file.name) is None:
            yield f"{redact(file.place)} is damaged: it is not used, and what it holds is computed again"


def _orphan_blobs(session: Session, blobs: BlobStore) -> Iterator[str]:
    """Yield a sentence about blobs that no row references; young ones may be about to be referenced."""
    referenced, cutoff = {digest for _, digest in referenced_blobs(session)}, now() - GRACE_PERIOD
    sizes = [blob.bytes for blob in blobs.iterate() if blob.name not in referenced and blob.put_at < cutoff]
    if sizes and holds_history(session):
        yield f"{len(sizes)} blobs of {sum(sizes):,} bytes are named by no row; `continual gc` removes them"
