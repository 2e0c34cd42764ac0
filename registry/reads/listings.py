"""Listings and records as functions of a session, each with a constant number of statements."""

from collections import defaultdict
from collections.abc import Collection, Sequence

from sqlalchemy import and_, case, func, select
from sqlalchemy.orm import Session, aliased

from registry.errors import NotFound
from registry.names import parse_delta
from registry.reads.lookups import backbone_row, delta_row, is_champion, main_score_filter, stream_row, task_row
from registry.reads.mapping import (
    ListingRow,
    delta_listing,
    stored_backbone,
    stored_champion,
    stored_confusion,
    stored_delta,
    stored_position,
    stored_score,
    stored_signature,
    stored_strategy,
    stored_stream,
    stored_task,
    task_listing,
)
from registry.reads.pagination import paginate
from registry.records import (
    BackboneRecord,
    Champion,
    ScoreMode,
    StoredConfusion,
    StoredDelta,
    StoredScore,
    StoredSignature,
    TaskRecord,
)
from registry.schema.score_tables import Confusion, ScoreRow
from registry.schema.strategy_tables import StrategyRun
from registry.schema.tables import Backbone, Delta, Position, Signature, Stream, Task
from registry.stream_records import StoredPosition, StoredStrategy, StoredStream

CHUNK_SIZE = 500  # names per statement


def tasks(session: Session, *, limit: int | None = None, after: str | None = None) -> list[ListingRow]:
    """List the tasks that are not purged, in order of arrival.

    Args:
        session: A session.
        limit: Maximum number of rows.
        after: The name of the last task of the previous page.

    Returns:
        Rows of `continual tasks`: task, kind, metric, labels (their number), rows, champion (the newest, if several
        backbones have one), score, created_at, champion_created_at.

    Raises:
        NotFound: There is no task `after`.
    """
    champion_row = aliased(Delta)
    newest = (
        select(func.max(champion_row.id))
        .where(champion_row.task_id == Task.id, is_champion(champion_row))
        .correlate(Task)
    )
    query = (
        select(Task, Delta.version, Delta.created_at, ScoreRow.value)
        .select_from(Task)
        .outerjoin(Delta, Delta.id == newest.scalar_subquery())
        .outerjoin(ScoreRow, and_(ScoreRow.delta_id == Delta.id, *main_score_filter("test")))
        .where(Task.purged_at.is_(None))
    )
    cursor = None if after is None else (task_row(session, after).id,)
    return [task_listing(*row) for row in session.execute(paginate(query, Task.id, limit=limit, after=cursor))]


def deltas(
    session: Session, task: str | None = None, *, limit: int | None = None, after: str | None = None
) -> list[ListingRow]:
    """List the deltas of one task or of all, in order of learning.

    Args:
        session: A session.
        task: Only this task.
        limit: Maximum number of rows.
        after: The name of the last delta of the previous page.

    Returns:
        Rows of `continual deltas`.

    Raises:
        NotFound: The task or the delta `after` is not registered.
    """
    # A subquery per row of the page: with a join, PostgreSQL may read the scores of all deltas before the page.
    score = (
        select(ScoreRow.value).where(ScoreRow.delta_id == Delta.id, *main_score_filter("test")).correlate(Delta, Task)
    )
    query = select(Delta, score.scalar_subquery()).join(Delta.task)
    if task is not None:
        query = query.where(Delta.task_id == task_row(session, task).id)
    cursor = None if after is None else (delta_row(session, after).id,)
    return [delta_listing(*row) for row in session.execute(paginate(query, Delta.id, limit=limit, after=cursor))]


def delta(session: Session, name: str) -> StoredDelta:
    """Return the delta called `name`, such as sst2@1.

    Raises:
        NotFound: There is no such delta.
    """
    return stored_delta(delta_row(session, name))


def task(session: Session, name: str) -> TaskRecord:
    """Return the task called `name`.

    Raises:
        NotFound: There is no such task, or it was purged.
    """
    row = task_row(session, name)
    if row.purged_at is not None:
        raise NotFound(f"task {name!r} was purged: nothing but its name is kept. Learn it again.")
    return stored_task(row)


def backbone(session: Session, fingerprint: str) -> BackboneRecord:
    """Return the backbone of this fingerprint.

    Raises:
        NotFound: It is not registered.
    """
    return stored_backbone(backbone_row(session, fingerprint))


def backbones(session: Session) -> tuple[BackboneRecord, ...]:
    """Return all backbones, in order of registration."""
    return tuple(stored_backbone(row) for row in session.scalars(select(Backbone).order_by(Backbone.id)))


def champions(session: Session, backbone: str) -> tuple[Champion, ...]:
    """Return the champions on the backbone of this fingerprint, in the order their tasks were learned."""
    backbone_id = select(Backbone.id).where(Backbone.fingerprint == backbone).scalar_subquery()
    arrivals = select(Delta.task_id, func.min(Delta.id).label("first")).where(Delta.backbone_id == backbone_id)
    arrived = arrivals.group_by(Delta.task_id).subquery()  # joined: as a subquery it would run per champion
    query = (
        select(
            *(Task.name, Delta.version, Delta.method, Delta.settings, Delta.budget, Delta.digest, Delta.created_at),
            Task.spec,
        )
        .join(Task, Task.id == Delta.task_id)
        .join(arrived, arrived.c.task_id == Delta.task_id)
        .where(Delta.backbone_id == backbone_id, is_champion())
        .order_by(arrived.c.first)
    )
    return tuple(stored_champion(*row) for row in session.execute(query))


def signatures(
    session: Session, backbone: str, *, deltas: Collection[str] | None = None
) -> tuple[StoredSignature, ...]:
    """Return the signatures of deltas on a backbone, in order of their tasks' arrival.

    Args:
        session: A session.
        backbone: The backbone's fingerprint.
        deltas: Names of deltas, those without a signature are skipped; by default the champions.

    Raises:
        NotFound: A name is not of the form TASK@VERSION.
    """
    query = (
        select(Signature, Task.name, Delta.version)
        .join(Delta, Delta.id == Signature.delta_id)
        .join(Task, Task.id == Delta.task_id)
        .join(Backbone, Backbone.id == Delta.backbone_id)
        .where(Backbone.fingerprint == backbone)
        .order_by(Delta.task_id)
    )
    if deltas is None:
        return tuple(stored_signature(*row) for row in session.execute(query.where(is_champion())))
    pairs = sorted(map(parse_delta, deltas))
    chunks = [pairs[start : start + CHUNK_SIZE] for start in range(0, len(pairs), CHUNK_SIZE)]
    rows = (row for chunk in chunks for row in session.execute(query.where(Task.name.in_([task for task, _ in chunk]))))
    wanted = set(pairs)
    return tuple(
        stored_signature(signature_row, task, version)
        for signature_row, task, version in rows
        if (task, version) in wanted
    )


def signature(session: Session, delta: str) -> StoredSignature:
    """Return the signature of a delta.

    Raises:
        NotFound: The delta is not registered or has no signature.
    """
    row = delta_row(session, delta)
    record = session.scalar(select(Signature).where(Signature.delta_id == row.id))
    if record is None:
        raise NotFound(f"{delta} has no signature: it was imported without rows, or purged. Name a version with one.")
    return stored_signature(record, row.task.name, row.version)


def last_version(session: Session, task: str, backbone: str) -> StoredDelta | None:
    """Return a task's champion on a backbone, or else its newest delta there that is not purged, if any."""
    query = (
        select(Delta)
        .join(Delta.task)
        .join(Delta.backbone)
        .where(Task.name == task, Backbone.fingerprint == backbone, Delta.status != "purged")
        .order_by(case((is_champion(), 0), else_=1), Delta.version.desc())
        .limit(1)
    )
    row = session.scalar(query)
    return None if row is None else stored_delta(row)


def stream(session: Session, name: str) -> StoredStream:
    """Return a stream with its positions.

    Raises:
        NotFound: There is no such stream, or it is the arrivals' stream.
    """
    row = stream_row(session, name)
    if row.backbone is None:
        raise NotFound(f"{name!r} is no stream of a file: `continual arrivals` lists what arrived.")
    return stored_stream(row, row.backbone, _positions(session, [row.id])[row.id])


def positions(session: Session, stream: str) -> tuple[StoredPosition, ...]:
    """Return the positions of a stream, in order; an empty tuple if it is not registered."""
    row = session.scalar(select(Stream.id).where(Stream.name == stream))
    return () if row is None else tuple(_positions(session, [row])[row])


def streams(session: Session, *, limit: int | None = None, after: str | None = None) -> tuple[StoredStream, ...]:
    """Return all streams except the arrivals', with their positions, in order of registration.

    Args:
        session: A session.
        limit: Maximum number of streams.
        after: The name of the last stream of the previous page.

    Raises:
        NotFound: There is no stream `after`.
    """
    cursor = None if after is None else (stream_row(session, after).id,)
    query = select(Stream, Backbone).join(Backbone, Backbone.id == Stream.backbone_id)
    rows = session.execute(paginate(query, Stream.id, limit=limit, after=cursor)).all()
    positions = _positions(session, [row.id for row, _ in rows])
    return tuple(stored_stream(row, backbone, positions[row.id]) for row, backbone in rows)


def last_stream(session: Session) -> str | None:
    """Return the name of the stream registered last, arrivals excepted; None if there is none."""
    newest_id = select(func.max(Stream.id)).where(Stream.backbone_id.is_not(None))
    return session.scalar(select(Stream.name).where(Stream.id == newest_id.scalar_subquery()))


def stream_deltas(session: Session, stream: str) -> tuple[StoredDelta, ...]:
    """Return the deltas learned in a stream, in order of their positions.

    Raises:
        NotFound: The stream is not registered.
    """
    stream_id = stream_row(session, stream).id
    query = select(Delta).join(Position, Position.delta_id == Delta.id).where(Position.stream_id == stream_id)
    return tuple(stored_delta(row) for row in session.scalars(query.order_by(Position.number)))


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
    """Return the scores that match all given filters, ordered by step, then by time of measuring.

    Args:
        session: A session.
        stream: The stream they were measured in.
        delta: The scored delta.
        task: The scored task.
        learned_in: The stream that their deltas were learned in.
        mode: Oracle, routed, or a baseline.
        split: The scored split.
        step: The stream position after which they were measured.
        limit: Maximum number of scores.
        after: The last score of the previous page.

    Raises:
        NotFound: The stream, delta or task is not registered.
    """
    filters = {
        "stream_id": None if stream is None else stream_row(session, stream).id,
        "delta_id": None if delta is None else delta_row(session, delta).id,
        "task_id": None if task is None else task_row(session, task).id,
        "mode": mode,
        "split": split,
        "step": step,
    }
    query = (
        select(ScoreRow, Task.name, Delta.version, Stream.name)
        .where(*(getattr(ScoreRow, column) == value for column, value in filters.items() if value is not None))
        .join(Delta, Delta.id == ScoreRow.delta_id)
        .join(Task, Task.id == ScoreRow.task_id)
        .outerjoin(Stream, Stream.id == ScoreRow.stream_id)
    )
    if learned_in is not None:
        delta_ids = select(Position.delta_id).where(Position.stream_id == stream_row(session, learned_in).id)
        query = query.where(ScoreRow.delta_id.in_(delta_ids))
    cursor = None if after is None else (after.step, after.id)
    query = paginate(query, ScoreRow.step, ScoreRow.id, limit=limit, after=cursor)
    return tuple(stored_score(*row) for row in session.execute(query))


def confusions(session: Session, stream: str, *, step: int) -> tuple[StoredConfusion, ...]:
    """Return how many test rows of each delta were routed to another after a stream's step, largest first.

    Raises:
        NotFound: The stream is not registered.
    """
    conditions = (Confusion.stream_id == stream_row(session, stream).id, Confusion.step == step)
    query = select(Confusion).where(*conditions).order_by(Confusion.rows.desc(), Confusion.id)
    return tuple(stored_confusion(row) for row in session.scalars(query))


def strategies(session: Session, stream: str) -> tuple[StoredStrategy, ...]:
    """Return the runs of strategies over a stream, in the order they were started.

    Raises:
        NotFound: The stream is not registered.
    """
    query = select(StrategyRun).where(StrategyRun.stream_id == stream_row(session, stream).id)
    return tuple(stored_strategy(row) for row in session.scalars(query.order_by(StrategyRun.id)))


def stream_of(session: Session, delta: str) -> str | None:
    """Return the name of the stream in which a delta was learned; None if it was learned outside any.

    Raises:
        NotFound: The delta is not registered.
    """
    query = select(Stream.name).join(Position).where(Position.delta_id == delta_row(session, delta).id)
    query = query.where(Position.submitted_at.is_(None))
    return session.scalar(query.order_by(Position.id).limit(1))


def task_champions(session: Session, task: str) -> tuple[StoredDelta, ...]:
    """Return the champions of a task, one per backbone, in order of learning.

    Raises:
        NotFound: The task is not registered.
    """
    query = select(Delta).where(Delta.task_id == task_row(session, task).id, is_champion())
    return tuple(stored_delta(row) for row in session.scalars(query.order_by(Delta.id)))


def _positions(session: Session, streams: Sequence[int]) -> defaultdict[int, list[StoredPosition]]:
    """Return the positions of streams in order, by stream."""
    query = select(Position, Delta.version, Delta.status).outerjoin(Delta, Delta.id == Position.delta_id)
    ordered = query.where(Position.stream_id.in_(streams)).order_by(Position.stream_id, Position.number)
    by_stream = defaultdict(list)
    for position, version, status in session.execute(ordered):
        by_stream[position.stream_id].append(stored_position(position, version, status))
    return by_stream
