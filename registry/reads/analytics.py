"""Analytical queries: best deltas, score history, change log, cost of streams."""

from datetime import datetime
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from registry.errors import NotFound
from registry.reads.lookups import delta_name_expression, standalone_score_filter, stream_row, task_row
from registry.reads.mapping import ListingRow, to_dicts
from registry.reads.pagination import paginate
from registry.records import ScoreMode
from registry.schema.score_tables import ScoreRow
from registry.schema.tables import Backbone, Delta, Event, Position, Split, Stream, Task
from tasks.errors import InputError

DELTA = delta_name_expression(Task, Delta).label("delta")
REPORTED_MODES: tuple[ScoreMode, ...] = ("oracle", "routed")  # the other modes are baselines


def best_deltas(
    session: Session,
    *,
    task: str | None = None,
    metric: str | None = None,
    split: str = "test",
    limit: int | None = None,
    after: int | None = None,
) -> list[ListingRow]:
    """List the best delta of each task by each metric, by oracle score: one row per pair.

    Ordered by the tasks' arrival, then the metric's name; of equal scores the newest; purged deltas are left out.

    Args:
        session: A session.
        task: Only this task.
        metric: Only this metric.
        split: The scored split.
        limit: Maximum number of rows.
        after: The `id` of the last row of the previous page.

    Returns:
        Rows: id, task, metric, split, delta, backbone, status, score, low, high, rows.

    Raises:
        NotFound: The task is not registered, or the row `after` is gone.
    """
    keys = (ScoreRow.task_id, ScoreRow.metric)
    pairs = select(*keys).where(*standalone_score_filter(), ScoreRow.split == split).distinct()
    if task is not None:
        pairs = pairs.where(ScoreRow.task_id == task_row(session, task).id)
    if metric is not None:
        pairs = pairs.where(ScoreRow.metric == metric)
    cursor = None if after is None else _cursor(session, ScoreRow, after, *keys)
    page, candidate = paginate(pairs, *keys, limit=limit, after=cursor).subquery(), aliased(ScoreRow)
    same_pair = (candidate.split == split, candidate.task_id == page.c.task_id, candidate.metric == page.c.metric)
    ranked = (
        select(candidate.id)
        .join(Delta, Delta.id == candidate.delta_id)
        .where(*standalone_score_filter(candidate), *same_pair, Delta.status != "purged")
    )
    best_id = ranked.order_by(candidate.value.desc(), candidate.id.desc()).limit(1).correlate(page).scalar_subquery()
    names = (Task.name.label("task"), ScoreRow.metric, ScoreRow.split, DELTA, Backbone.name.label("backbone"))
    values = (ScoreRow.value.label("score"), ScoreRow.low, ScoreRow.high, ScoreRow.rows)
    query = (
        select(ScoreRow.id, *names, Delta.status, *values)
        .select_from(page)
        .join(ScoreRow, ScoreRow.id == best_id)
        .join(Delta, Delta.id == ScoreRow.delta_id)
        .join(Task, Task.id == ScoreRow.task_id)
        .join(Backbone, Backbone.id == Delta.backbone_id)
    )
    return to_dicts(session, query.order_by(page.c.task_id, page.c.metric))


def score_history(
    session: Session,
    task: str,
    *,
    metric: str | None = None,
    split: str = "test",
    limit: int | None = None,
    after: int | None = None,
) -> list[ListingRow]:
    """List the oracle and routed scores of a task, over its versions and streams, in order of measuring.

    Args:
        session: A session.
        task: The task's name.
        metric: The default is the task's own.
        split: The scored split.
        limit: Maximum number of rows.
        after: The `id` of the last row of the previous page.

    Returns:
        Rows: id, delta, status, metric, split, mode (oracle or routed), stream, step, score, low, high, rows.

    Raises:
        NotFound: The task is not registered.
    """
    row = task_row(session, task)
    conditions = (ScoreRow.task_id == row.id, ScoreRow.metric == (metric or row.metric), ScoreRow.split == split)
    context = (ScoreRow.metric, ScoreRow.split, ScoreRow.mode, Stream.name.label("stream"), ScoreRow.step)
    values = (ScoreRow.value.label("score"), ScoreRow.low, ScoreRow.high, ScoreRow.rows)
    query = (
        select(ScoreRow.id, DELTA, Delta.status, *context, *values)
        .join(Delta, Delta.id == ScoreRow.delta_id)
        .join(Task, Task.id == ScoreRow.task_id)
        .outerjoin(Stream, Stream.id == ScoreRow.stream_id)
        .where(*conditions, ScoreRow.mode.in_(REPORTED_MODES))
    )
    return to_dicts(session, paginate(query, ScoreRow.id, limit=limit, after=None if after is None else (after,)))


def change_log(
    session: Session,
    *,
    since: datetime | None = None,
    task: str | None = None,
    limit: int | None = None,
    after: int | None = None,
) -> list[ListingRow]:
    """List the events of all tasks or of one, oldest first.

    Args:
        session: A session.
        since: Only events from this time on; with a time zone.
        task: Only this task.
        limit: Maximum number of rows.
        after: The `id` of the last row of the previous page.

    Returns:
        Rows: id, at, what, task, delta, reason.

    Raises:
        NotFound: The task is not registered, or the row `after` is gone.
        InputError: `since` has no time zone.
    """
    if since is not None and since.tzinfo is None:
        raise InputError(f"since {since} in which zone? Give it with one, such as 2026-01-31T12:00+00:00.")
    query = (
        select(Event.id, Event.created_at.label("at"), Event.what, Task.name.label("task"), DELTA, Event.reason)
        .join(Task, Task.id == Event.task_id)
        .outerjoin(Delta, Delta.id == Event.delta_id)
    )
    if since is not None:
        query = query.where(Event.created_at >= since)
    if task is not None:
        query = query.where(Event.task_id == task_row(session, task).id)
    keys = (Event.created_at, Event.id)
    cursor = None if after is None else _cursor(session, Event, after, *keys)
    rows = to_dicts(session, paginate(query, *keys, limit=limit, after=cursor))
    return [row | {"at": row["at"].isoformat()} for row in rows]


def stream_costs(
    session: Session, stream: str | None = None, *, limit: int | None = None, after: str | None = None
) -> list[ListingRow]:
    """List the cost of all streams or of one, in order of registration.

    Args:
        session: A session.
        stream: Only this stream.
        limit: Maximum number of rows.
        after: The name of the last stream of the previous page.

    Returns:
        Rows: stream, backbone (None for arrivals), tasks, learned, failed, retries, seconds (of learning), examples
        (train rows times epochs), bytes and parameters (of the deltas).

    Raises:
        NotFound: A stream is not registered.
    """
    stream_ids = select(Stream.id)
    if stream is not None:
        stream_ids = stream_ids.where(Stream.id == stream_row(session, stream).id)
    cursor = None if after is None else (stream_row(session, after).id,)
    page = paginate(stream_ids, Stream.id, limit=limit, after=cursor).subquery()
    sums = {
        "retries": case((Position.attempts > 1, Position.attempts - 1)),
        "seconds": Delta.seconds,
        "examples": Split.rows * Delta.budget["epochs"].as_integer(),
        "bytes": Delta.bytes,
        "parameters": Delta.parameters,
    }
    states = [func.count(case((Position.state == state, 1))).label(state) for state in ("learned", "failed")]
    totals = [func.coalesce(func.sum(value), 0).label(name) for name, value in sums.items()]
    query = (
        select(Stream.name.label("stream"), Backbone.name.label("backbone"), func.count(Position.id).label("tasks"))
        .add_columns(*states, *totals)
        .join(page, page.c.id == Stream.id)
        .outerjoin(Backbone, Backbone.id == Stream.backbone_id)
        .outerjoin(Position, Position.stream_id == Stream.id)
        .outerjoin(Delta, Delta.id == Position.delta_id)
        .outerjoin(Split, (Split.delta_id == Delta.id) & (Split.split == "train"))
        .group_by(Stream.id, Stream.name, Backbone.name)
    )
    return to_dicts(session, query.order_by(Stream.id))


def _cursor(
    session: Session, table: type[ScoreRow] | type[Event], row_id: int, *keys: InstrumentedAttribute[Any]
) -> tuple[Any, ...]:
    """Return the sort key of a page's last row; raise NotFound if the row is gone."""
    row = session.get(table, row_id)
    if row is None:
        raise NotFound(
            f"there is no row {row_id} to go on after: it was measured again. Ask again from the first page."
        )
    return tuple(getattr(row, key.key) for key in keys)
