"""What people ask of what was learned: which delta is best, how scores went, what changed, what a stream cost."""

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
REPORTED_MODES: tuple[ScoreMode, ...] = ("oracle", "routed")  # the others are not scores of what serves


def best_deltas(
    session: Session,
    *,
    task: str | None = None,
    metric: str | None = None,
    split: str = "test",
    limit: int | None = None,
    after: int | None = None,
) -> list[ListingRow]:
    """The best delta of each task by each metric, with the task known: one row for each pair.

    id, task, metric, split, delta, backbone, status, score, low, high, rows; of equals the newest, none purged.
    In order of the tasks' arrival, then of the metric's name. after: the `id` of the last row of the page before.
    Raises: NotFound for the task.
    """
    keys = (ScoreRow.task_id, ScoreRow.metric)
    pairs = select(*keys).where(*standalone_score_filter(), ScoreRow.split == split).distinct()
    if task is not None:
        pairs = pairs.where(ScoreRow.task_id == task_row(session, task).id)
    if metric is not None:
        pairs = pairs.where(ScoreRow.metric == metric)
    last = None if after is None else _place(session, ScoreRow, after, *keys)
    of, one = paginate(pairs, *keys, limit=limit, after=last).subquery(), aliased(ScoreRow)
    same = (one.split == split, one.task_id == of.c.task_id, one.metric == of.c.metric)
    ranked = (
        select(one.id)
        .join(Delta, Delta.id == one.delta_id)
        .where(*standalone_score_filter(one), *same, Delta.status != "purged")
    )
    top = ranked.order_by(one.value.desc(), one.id.desc()).limit(1).correlate(of).scalar_subquery()
    names = (Task.name.label("task"), ScoreRow.metric, ScoreRow.split, DELTA, Backbone.name.label("backbone"))
    values = (ScoreRow.value.label("score"), ScoreRow.low, ScoreRow.high, ScoreRow.rows)
    found = (
        select(ScoreRow.id, *names, Delta.status, *values)
        .select_from(of)
        .join(ScoreRow, ScoreRow.id == top)
        .join(Delta, Delta.id == ScoreRow.delta_id)
        .join(Task, Task.id == ScoreRow.task_id)
        .join(Backbone, Backbone.id == Delta.backbone_id)
    )
    return to_dicts(session, found.order_by(of.c.task_id, of.c.metric))


def score_history(
    session: Session,
    task: str,
    *,
    metric: str | None = None,
    split: str = "test",
    limit: int | None = None,
    after: int | None = None,
) -> list[ListingRow]:
    """How the scores of a task went, over its versions and over the streams that it was routed in, as measured.

    id, delta, status, metric, split, mode (oracle or routed), stream, step, score, low, high, rows.
    metric: without it the task's own · after: the `id` of the last row of the page before. Raises: NotFound.
    """
    row = task_row(session, task)
    where = (ScoreRow.task_id == row.id, ScoreRow.metric == (metric or row.metric), ScoreRow.split == split)
    place = (ScoreRow.metric, ScoreRow.split, ScoreRow.mode, Stream.name.label("stream"), ScoreRow.step)
    values = (ScoreRow.value.label("score"), ScoreRow.low, ScoreRow.high, ScoreRow.rows)
    found = (
        select(ScoreRow.id, DELTA, Delta.status, *place, *values)
        .join(Delta, Delta.id == ScoreRow.delta_id)
        .join(Task, Task.id == ScoreRow.task_id)
        .outerjoin(Stream, Stream.id == ScoreRow.stream_id)
        .where(*where, ScoreRow.mode.in_(REPORTED_MODES))
    )
    return to_dicts(session, paginate(found, ScoreRow.id, limit=limit, after=None if after is None else (after,)))


def change_log(
    session: Session,
    *,
    since: datetime | None = None,
    task: str | None = None,
    limit: int | None = None,
    after: int | None = None,
) -> list[ListingRow]:
    """What happened from a moment on, of all tasks or of one: id, at, what, task, delta, reason; oldest first.

    after: the `id` of the last row of the page before. Raises: NotFound for the task; InputError for a `since` without
    a zone.
    """
    if since is not None and since.tzinfo is None:
        raise InputError(f"since {since} in which zone? Give it with one, such as 2026-01-31T12:00+00:00.")
    found = (
        select(Event.id, Event.created_at.label("at"), Event.what, Task.name.label("task"), DELTA, Event.reason)
        .join(Task, Task.id == Event.task_id)
        .outerjoin(Delta, Delta.id == Event.delta_id)
    )
    if since is not None:
        found = found.where(Event.created_at >= since)
    if task is not None:
        found = found.where(Event.task_id == task_row(session, task).id)
    keys = (Event.created_at, Event.id)
    last = None if after is None else _place(session, Event, after, *keys)
    listed = to_dicts(session, paginate(found, *keys, limit=limit, after=last))
    return [row | {"at": row["at"].isoformat()} for row in listed]


def stream_costs(
    session: Session, stream: str | None = None, *, limit: int | None = None, after: str | None = None
) -> list[ListingRow]:
    """What streams took, one or all: stream, backbone, tasks, learned, failed, retries, seconds, examples, bytes,
    parameters; in the order in which they were begun.

    That of arrivals has no backbone of its own. seconds: of learning · examples: train rows times epochs · bytes,
    parameters: of the deltas.
    after: the name of the last stream of the page before. Raises: NotFound.
    """
    chosen = select(Stream.id)
    if stream is not None:
        chosen = chosen.where(Stream.id == stream_row(session, stream).id)
    last = None if after is None else (stream_row(session, after).id,)
    of = paginate(chosen, Stream.id, limit=limit, after=last).subquery()
    sums = {
        "retries": case((Position.attempts > 1, Position.attempts - 1)),
        "seconds": Delta.seconds,
        "examples": Split.rows * Delta.budget["epochs"].as_integer(),
        "bytes": Delta.bytes,
        "parameters": Delta.parameters,
    }
    states = [func.count(case((Position.state == state, 1))).label(state) for state in ("learned", "failed")]
    totals = [func.coalesce(func.sum(value), 0).label(name) for name, value in sums.items()]
    found = (
        select(Stream.name.label("stream"), Backbone.name.label("backbone"), func.count(Position.id).label("tasks"))
        .add_columns(*states, *totals)
        .join(of, of.c.id == Stream.id)
        .outerjoin(Backbone, Backbone.id == Stream.backbone_id)
        .outerjoin(Position, Position.stream_id == Stream.id)
        .outerjoin(Delta, Delta.id == Position.delta_id)
        .outerjoin(Split, (Split.delta_id == Delta.id) & (Split.split == "train"))
        .group_by(Stream.id, Stream.name, Backbone.name)
    )
    return to_dicts(session, found.order_by(Stream.id))


def _place(
    session: Session, table: type[ScoreRow] | type[Event], row: int, *keys: InstrumentedAttribute[Any]
) -> tuple[Any, ...]:
    """Where the last row of a page stands in its order. Raises: NotFound, where it is gone."""
    found = session.get(table, row)
    if found is None:
        raise NotFound(f"there is no row {row} to go on after: it was measured again. Ask again from the first page.")
    return tuple(getattr(found, key.key) for key in keys)
