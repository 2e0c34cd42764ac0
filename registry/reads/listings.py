"""What is registered: listings and records, as pure functions of a session, each of a constant number of statements."""

from collections import defaultdict
from collections.abc import Collection, Sequence

from sqlalchemy import and_, case, func, select
from sqlalchemy.orm import Session, aliased

from registry.errors import NotFound
from registry.names import parse_delta
from registry.reads.lookups import backbone_row, delta_row, is_champion, own_score_join, stream_row, task_row
from registry.reads.mapping import (
    ListingRow,
    champion,
    delta_listing,
    stored_backbone,
    stored_confusion,
    stored_position,
    stored_score,
    stored_signature,
    stored_strategy,
    stored_stream,
    stored_task,
    task_row_dict,
    to_delta_record,
)
from registry.reads.pagination import paginate
from registry.records import (
    BackboneRecord,
    Champion,
    ScoreMode,
    StoredConfusion,
    StoredDelta,
    StoredPosition,
    StoredScore,
    StoredSignature,
    StoredStrategy,
    StoredStream,
    TaskRecord,
)
from registry.schema.score_tables import Confusion, ScoreRow
from registry.schema.strategy_tables import StrategyRun
from registry.schema.tables import Backbone, Delta, Position, Signature, Stream, Task

CHUNK_SIZE = 500  # names in one statement


def tasks(session: Session, *, limit: int | None = None, after: str | None = None) -> list[ListingRow]:
    """Rows of `continual tasks`: task, kind, metric, labels (their number), rows, champion, score, created_at.

    In order of arrival, without those that were purged; the champion is the newest, if several backbones have one.
    after: the name of the last task of the page before. Raises: NotFound for it.
    """
    serving = aliased(Delta)
    newest = select(func.max(serving.id)).where(serving.task_id == Task.id, is_champion(serving)).correlate(Task)
    found = (
        select(Task, Delta.version, ScoreRow.value)
        .select_from(Task)
        .outerjoin(Delta, Delta.id == newest.scalar_subquery())
        .outerjoin(ScoreRow, and_(ScoreRow.delta_id == Delta.id, *own_score_join("test")))
        .where(Task.purged_at.is_(None))
    )
    last = None if after is None else (task_row(session, after).id,)
    return [task_row_dict(*row) for row in session.execute(paginate(found, Task.id, limit=limit, after=last))]


def deltas(
    session: Session, task: str | None = None, *, limit: int | None = None, after: str | None = None
) -> list[ListingRow]:
    """Rows of `continual deltas`, of one task or of all, in order of learning.

    after: the name of the last delta of the page before. Raises: NotFound for it and for the task.
    """
    # Asked for each row of a page: joined, PostgreSQL may read all scores of the deltas before the page to get there.
    own = select(ScoreRow.value).where(ScoreRow.delta_id == Delta.id, *own_score_join("test")).correlate(Delta, Task)
    found = select(Delta, own.scalar_subquery()).join(Delta.task)
    if task is not None:
        found = found.where(Delta.task_id == task_row(session, task).id)
    last = None if after is None else (delta_row(session, after).id,)
    return [delta_listing(*row) for row in session.execute(paginate(found, Delta.id, limit=limit, after=last))]


def delta(session: Session, name: str) -> StoredDelta:
    """The delta of that name, such as sst2@1. Raises: NotFound."""
    return to_delta_record(delta_row(session, name))


def task(session: Session, name: str) -> TaskRecord:
    """The task of that name. Raises: NotFound, also where it was purged."""
    row = task_row(session, name)
    if row.purged_at is not None:
        raise NotFound(f"task {name!r} was purged: nothing but its name is kept. Learn it again.")
    return stored_task(row)


def backbone(session: Session, fingerprint: str) -> BackboneRecord:
    """The backbone of that fingerprint. Raises: NotFound."""
    return stored_backbone(backbone_row(session, fingerprint))


def backbones(session: Session) -> tuple[BackboneRecord, ...]:
    """All backbones, in the order in which they were registered."""
    return tuple(stored_backbone(row) for row in session.scalars(select(Backbone).order_by(Backbone.id)))


def champions(session: Session, backbone: str) -> tuple[Champion, ...]:
    """The deltas that serve on the backbone of this fingerprint, in the order in which their tasks were learned."""
    of = select(Backbone.id).where(Backbone.fingerprint == backbone).scalar_subquery()
    arrival = select(Delta.task_id, func.min(Delta.id).label("first")).where(Delta.backbone_id == of)
    arrived = arrival.group_by(Delta.task_id).subquery()  # not asked for each: that would be a table for each champion
    found = (
        select(Task.name, Delta.version, Delta.method, Delta.settings, Delta.budget, Delta.digest)
        .join(Task, Task.id == Delta.task_id)
        .join(arrived, arrived.c.task_id == Delta.task_id)
        .where(Delta.backbone_id == of, is_champion())
        .order_by(arrived.c.first)
    )
    return tuple(champion(*row) for row in session.execute(found))


def signatures(
    session: Session, backbone: str, *, deltas: Collection[str] | None = None
) -> tuple[StoredSignature, ...]:
    """The signatures of the deltas that serve on a backbone, in order of their tasks' arrival.

    deltas: those that are meant, where they are not the champions; those that have none are left out. Raises: NotFound
    for what can be no delta's name.
    """
    found = (
        select(Signature, Task.name, Delta.version)
        .join(Delta, Delta.id == Signature.delta_id)
        .join(Task, Task.id == Delta.task_id)
        .join(Backbone, Backbone.id == Delta.backbone_id)
        .where(Backbone.fingerprint == backbone)
        .order_by(Delta.task_id)
    )
    if deltas is None:
        return tuple(stored_signature(*row) for row in session.execute(found.where(is_champion())))
    named = sorted(map(parse_delta, deltas))
    parts = [named[begin : begin + CHUNK_SIZE] for begin in range(0, len(named), CHUNK_SIZE)]
    rows = (row for part in parts for row in session.execute(found.where(Task.name.in_([task for task, _ in part]))))
    wanted = set(named)
    return tuple(stored_signature(own, task, version) for own, task, version in rows if (task, version) in wanted)


def signature(session: Session, delta: str) -> StoredSignature:
    """The signature of a delta. Raises: NotFound, also where it has none."""
    row = delta_row(session, delta)
    found = session.scalar(select(Signature).where(Signature.delta_id == row.id))
    if found is None:
        raise NotFound(f"{delta} has no signature: it was imported without rows, or purged. Name a version with one.")
    return stored_signature(found, row.task.name, row.version)


def last_version(session: Session, task: str, backbone: str) -> StoredDelta | None:
    """The delta that serves a task on a backbone, else its newest that is not purged; None where there is none."""
    found = (
        select(Delta)
        .join(Delta.task)
        .join(Delta.backbone)
        .where(Task.name == task, Backbone.fingerprint == backbone, Delta.status != "purged")
        .order_by(case((is_champion(), 0), else_=1), Delta.version.desc())
        .limit(1)
    )
    row = session.scalar(found)
    return None if row is None else to_delta_record(row)


def stream(session: Session, name: str) -> StoredStream:
    """The stream of that name with its positions. Raises: NotFound."""
    row = stream_row(session, name)
    if row.backbone is None:
        raise NotFound(f"{name!r} is no stream of a file: `continual arrivals` lists what arrived.")
    return stored_stream(row, row.backbone, _positions(session, [row.id])[row.id])


def positions(session: Session, stream: str) -> tuple[StoredPosition, ...]:
    """The positions of the stream of that name, in order; none where it was never begun."""
    row = session.scalar(select(Stream.id).where(Stream.name == stream))
    return () if row is None else tuple(_positions(session, [row])[row])


def streams(session: Session, *, limit: int | None = None, after: str | None = None) -> tuple[StoredStream, ...]:
    """All streams but that of arrivals, with their positions, in the order in which they were begun.

    after: the name of the last stream of the page before. Raises: NotFound for it.
    """
    last = None if after is None else (stream_row(session, after).id,)
    begun = select(Stream, Backbone).join(Backbone, Backbone.id == Stream.backbone_id)
    found = session.execute(paginate(begun, Stream.id, limit=limit, after=last)).all()
    positions = _positions(session, [row.id for row, _ in found])
    return tuple(stored_stream(row, backbone, positions[row.id]) for row, backbone in found)


def last_stream(session: Session) -> str | None:
    """The name of the stream that was begun last, arrivals aside; None where none was."""
    last = select(func.max(Stream.id)).where(Stream.backbone_id.is_not(None))
    return session.scalar(select(Stream.name).where(Stream.id == last.scalar_subquery()))


def stream_deltas(session: Session, stream: str) -> tuple[StoredDelta, ...]:
    """The deltas that were learned in a stream, in order of their positions. Raises: NotFound."""
    wanted = stream_row(session, stream).id
    found = select(Delta).join(Position, Position.delta_id == Delta.id).where(Position.stream_id == wanted)
    return tuple(to_delta_record(row) for row in session.scalars(found.order_by(Position.number)))


def scores(
    session: Session,
    *,
    stream: str | None = None,
    delta: str | None = None,
    task: str | None = None,
    learned_in: str | None = None,
    mode: ScoreMode | None = None,
    split: str | None = None,
    step: int | None = None,
    limit: int | None = None,
    after: StoredScore | None = None,
) -> tuple[StoredScore, ...]:
    """The scores that match all that is given, in order of step and then of measuring.

    stream: the one that they were measured in · learned_in: the one that their deltas were learned in · after: the last
    score of the page before. Raises: NotFound for a stream, delta or task that is not registered.
    """
    wanted = {
        "stream_id": None if stream is None else stream_row(session, stream).id,
        "delta_id": None if delta is None else delta_row(session, delta).id,
        "task_id": None if task is None else task_row(session, task).id,
        "mode": mode,
        "split": split,
        "step": step,
    }
    found = (
        select(ScoreRow, Task.name, Delta.version, Stream.name)
        .where(*(getattr(ScoreRow, column) == value for column, value in wanted.items() if value is not None))
        .join(Delta, Delta.id == ScoreRow.delta_id)
        .join(Task, Task.id == ScoreRow.task_id)
        .outerjoin(Stream, Stream.id == ScoreRow.stream_id)
    )
    if learned_in is not None:
        of_stream = select(Position.delta_id).where(Position.stream_id == stream_row(session, learned_in).id)
        found = found.where(ScoreRow.delta_id.in_(of_stream))
    last = None if after is None else (after.step, after.id)
    found = paginate(found, ScoreRow.step, ScoreRow.id, limit=limit, after=last)
    return tuple(stored_score(*row) for row in session.execute(found))


def confusions(session: Session, stream: str, *, step: int) -> tuple[StoredConfusion, ...]:
    """How many test rows of which delta were sent to which other after a position of a stream, the most first.

    Raises: NotFound for a stream that was never begun.
    """
    measured = (Confusion.stream_id == stream_row(session, stream).id, Confusion.step == step)
    found = select(Confusion).where(*measured).order_by(Confusion.rows.desc(), Confusion.id)
    return tuple(stored_confusion(row) for row in session.scalars(found))


def strategies(session: Session, stream: str) -> tuple[StoredStrategy, ...]:
    """The runs of other strategies through a stream, in the order in which they were begun.

    Raises: NotFound for a stream that was never begun.
    """
    found = select(StrategyRun).where(StrategyRun.stream_id == stream_row(session, stream).id)
    return tuple(stored_strategy(row) for row in session.scalars(found.order_by(StrategyRun.id)))


def stream_of(session: Session, delta: str) -> str | None:
    """The name of the stream in which a delta was learned; None where it was learned alone. Raises: NotFound."""
    found = select(Stream.name).join(Position).where(Position.delta_id == delta_row(session, delta).id)
    found = found.where(Position.submitted_at.is_(None))
    return session.scalar(found.order_by(Position.id).limit(1))


def task_champions(session: Session, task: str) -> tuple[StoredDelta, ...]:
    """The deltas that serve a task, one for each backbone, in order of learning. Raises: NotFound."""
    found = select(Delta).where(Delta.task_id == task_row(session, task).id, is_champion())
    return tuple(to_delta_record(row) for row in session.scalars(found.order_by(Delta.id)))


def _positions(session: Session, streams: Sequence[int]) -> defaultdict[int, list[StoredPosition]]:
    """The positions of streams in order, by stream."""
    of_streams = select(Position, Delta.version, Delta.status).outerjoin(Delta, Delta.id == Position.delta_id)
    found = of_streams.where(Position.stream_id.in_(streams)).order_by(Position.stream_id, Position.number)
    by_stream = defaultdict(list)
    for position, version, status in session.execute(found):
        by_stream[position.stream_id].append(stored_position(position, version, status))
    return by_stream
