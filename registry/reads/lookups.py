"""Lookups of a row by name, with errors that suggest near names, and conditions shared by queries."""

from sqlalchemy import ColumnElement, String, cast, literal_column, select
from sqlalchemy.orm import Session

from registry.errors import NotFound, not_found
from registry.names import delta_name, parse_delta
from registry.schema.score_tables import ScoreRow
from registry.schema.tables import Backbone, Delta, Position, Stream, Task


def backbone_row(session: Session, fingerprint: str) -> Backbone:
    """Return the backbone of this fingerprint.

    Raises:
        NotFound: It is not registered.
    """
    row = session.scalar(select(Backbone).where(Backbone.fingerprint == fingerprint))
    if row is None:
        raise not_found("backbone", fingerprint, known_names=session.scalars(select(Backbone.fingerprint)))
    return row


def task_row(session: Session, name: str) -> Task:
    """Return the task called `name`, purged or not.

    Raises:
        NotFound: There is no such task.
    """
    row = session.scalar(select(Task).where(Task.name == name))
    if row is None:
        raise not_found("task", name, known_names=session.scalars(select(Task.name)))
    return row


def delta_row(session: Session, name: str) -> Delta:
    """Return the delta of this public name, purged or not.

    Raises:
        NotFound: There is no such delta.
    """
    task, version = parse_delta(name)
    row = session.scalar(select(Delta).join(Delta.task).where(Task.name == task, Delta.version == version))
    if row is None:
        names = session.execute(select(Task.name, Delta.version).join(Delta.task))
        raise not_found("delta", name, known_names=(delta_name(*pair) for pair in names))
    return row


def stream_row(session: Session, name: str) -> Stream:
    """Return the stream called `name`.

    Raises:
        NotFound: There is no such stream.
    """
    row = session.scalar(select(Stream).where(Stream.name == name))
    if row is None:
        raise not_found("stream", name, known_names=session.scalars(select(Stream.name)))
    return row


def position_row(session: Session, stream: str, *, number: int) -> Position:
    """Return the position `number` of a stream, its row locked where the database locks rows.

    Raises:
        NotFound: There is no such stream or position.
    """
    parent = stream_row(session, stream)
    conditions = (Position.stream_id == parent.id, Position.number == number)
    position = session.scalar(select(Position).where(*conditions).with_for_update())
    if position is None:
        length = len(parent.positions)
        raise NotFound(f"stream {stream!r} has no position {number}: it has {length}, counted from 0. Begin it anew.")
    return position


def standalone_score_filter(row: type[ScoreRow] = ScoreRow) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions for a delta's oracle scores measured outside any stream.

    They repeat the conditions of the partial indices literally: a database uses such an index only if it can prove that
    they hold.
    """
    return (row.mode == literal_column("'oracle'"), row.stream_id.is_(None), row.step == literal_column("0"))


def main_score_filter(split: str) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions for a delta's one oracle score on `split` by its task's metric; join `Task`."""
    return (*standalone_score_filter(), ScoreRow.split == split, ScoreRow.metric == Task.metric)


def is_champion(row: type[Delta] = Delta) -> ColumnElement[bool]:
    """Return the condition for champions, literally as in the partial index."""
    return row.status == literal_column("'champion'")


def delta_name_expression(task: type[Task], delta: type[Delta]) -> ColumnElement[str]:
    """Return `delta_name` as an SQL expression."""
    return task.name + "@" + cast(delta.version, String)
