"""A row by its name, or an error that names its neighbours."""

from sqlalchemy import ColumnElement, String, cast, literal_column, select
from sqlalchemy.orm import Session

from registry.errors import NotFound, not_found
from registry.names import delta_name, parse_delta
from registry.schema.score_tables import ScoreRow
from registry.schema.tables import Backbone, Delta, Position, Stream, Task


def backbone_row(session: Session, fingerprint: str) -> Backbone:
    """The backbone of that fingerprint, or NotFound."""
    found = session.scalar(select(Backbone).where(Backbone.fingerprint == fingerprint))
    if found is None:
        raise not_found("backbone", fingerprint, known=session.scalars(select(Backbone.fingerprint)))
    return found


def task_row(session: Session, name: str) -> Task:
    """The task of that name, or NotFound."""
    found = session.scalar(select(Task).where(Task.name == name))
    if found is None:
        raise not_found("task", name, known=session.scalars(select(Task.name)))
    return found


def delta_row(session: Session, name: str) -> Delta:
    """The delta of that public name, or NotFound."""
    task, version = parse_delta(name)
    found = session.scalar(select(Delta).join(Delta.task).where(Task.name == task, Delta.version == version))
    if found is None:
        names = session.execute(select(Task.name, Delta.version).join(Delta.task))
        raise not_found("delta", name, known=(delta_name(*pair) for pair in names))
    return found


def stream_row(session: Session, name: str) -> Stream:
    """The stream of that name, or NotFound."""
    found = session.scalar(select(Stream).where(Stream.name == name))
    if found is None:
        raise not_found("stream", name, known=session.scalars(select(Stream.name)))
    return found


def position_row(session: Session, stream: str, *, number: int) -> Position:
    """The position of that number in the stream, or NotFound; locked where the database locks rows."""
    row = stream_row(session, stream)
    where = (Position.stream_id == row.id, Position.number == number)
    found = session.scalar(select(Position).where(*where).with_for_update())
    if found is None:
        known = len(row.positions)
        raise NotFound(f"stream {stream!r} has no position {number}: it has {known}, counted from 0. Begin it anew.")
    return found


def standalone_score_filter(row: type[ScoreRow] = ScoreRow) -> tuple[ColumnElement[bool], ...]:
    """What a delta's own scores have in common: measured with the task known, in no stream.

    Its words are those of the indices on such scores: a database takes one only where it can tell that they are met.
    """
    return (row.mode == literal_column("'oracle'"), row.stream_id.is_(None), row.step == literal_column("0"))


def own_score_join(split: str) -> tuple[ColumnElement[bool], ...]:
    """What picks a delta's one score on `split` by its task's metric with the task known; for a join with tasks."""
    return (*standalone_score_filter(), ScoreRow.split == split, ScoreRow.metric == Task.metric)


def is_champion(row: type[Delta] = Delta) -> ColumnElement[bool]:
    """What champions have in common; in the words of the index on them."""
    return row.status == literal_column("'champion'")


def delta_name_expression(task: type[Task], delta: type[Delta]) -> ColumnElement[str]:
    """`delta_name` as the database computes it."""
    return task.name + "@" + cast(delta.version, String)
