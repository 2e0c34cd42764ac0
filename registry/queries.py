"""Questions to the registry: pure functions of a session, each of a constant number of statements."""

from sqlalchemy import CTE, and_, case, func, literal, select
from sqlalchemy.orm import Session, aliased, joinedload, selectinload

from registry.errors import NotFound
from registry.lookups import backbone_row, delta_row, own_score, stream_row, task_row
from registry.records import (
    BackboneRecord,
    Champion,
    Mode,
    StoredDelta,
    StoredPosition,
    StoredScore,
    StoredSignature,
    StoredStream,
    TaskRecord,
)
from registry.shapes import (
    Row,
    champion,
    delta_listing,
    edge_listing,
    stored_backbone,
    stored_delta,
    stored_position,
    stored_score,
    stored_signature,
    stored_stream,
    stored_task,
    task_listing,
)
from registry.tables import Backbone, Delta, Lineage, Position, ScoreRow, Signature, Stream, Task

WITH_POSITIONS = selectinload(Stream.positions).joinedload(Position.delta)


def tasks(session: Session) -> list[Row]:
    """One row per task, in order of arrival, with its champion (the newest, if several backbones have one).

    One that was purged is none any more.
    """
    serving = aliased(Delta)
    of_task = (serving.task_id == Task.id, serving.status == "champion")
    newest = select(func.max(serving.id)).where(*of_task).correlate(Task).scalar_subquery()
    found = (
        select(Task, Delta.version, ScoreRow.value)
        .select_from(Task)
        .outerjoin(Delta, Delta.id == newest)
        .outerjoin(ScoreRow, and_(ScoreRow.delta_id == Delta.id, *own_score("test")))
        .where(Task.purged_at.is_(None))
        .order_by(Task.id)
    )
    return [task_listing(*row) for row in session.execute(found)]


def deltas(session: Session, *, task: str | None = None) -> list[Row]:
    """One row per registered version, in order of learning. Raises: NotFound for the task."""
    found = (
        select(Delta, ScoreRow.value)
        .join(Delta.task)
        .outerjoin(ScoreRow, and_(ScoreRow.delta_id == Delta.id, *own_score("test")))
        .order_by(Delta.id)
    )
    if task is not None:
        found = found.where(Task.id == task_row(session, task).id)
    return [delta_listing(*row) for row in session.execute(found)]


def lineage(session: Session, *, delta: str) -> list[Row]:
    """One row per edge from the delta to any ancestor; parents have depth 1. Raises: NotFound."""
    edges, child, parent = _ancestry(delta_row(session, delta).id), aliased(Delta), aliased(Delta)
    nearest = select(edges.c.id, func.min(edges.c.depth).label("depth")).group_by(edges.c.id).subquery()
    found = (
        select(child, parent, Lineage, nearest.c.depth)
        .select_from(nearest)
        .join(Lineage, Lineage.id == nearest.c.id)
        .join(child, child.id == Lineage.child_id)
        .join(parent, parent.id == Lineage.parent_id)
        .order_by(nearest.c.depth, Lineage.child_id.desc(), Lineage.weight.desc(), Lineage.id)
    )
    return [edge_listing(*row) for row in session.execute(found)]


def delta(session: Session, *, name: str) -> StoredDelta:
    """The delta of that name. Raises: NotFound."""
    return stored_delta(delta_row(session, name))


def task(session: Session, *, name: str) -> TaskRecord:
    """The task of that name. Raises: NotFound, also where it was purged."""
    row = task_row(session, name)
    if row.purged_at is not None:
        raise NotFound(f"task {name!r} was purged: nothing but its name is kept. Learn it again.")
    return stored_task(row)


def backbone(session: Session, *, fingerprint: str) -> BackboneRecord:
    """The backbone of that fingerprint. Raises: NotFound."""
    return stored_backbone(backbone_row(session, fingerprint))


def backbones(session: Session) -> tuple[BackboneRecord, ...]:
    """All backbones, in the order in which they were registered."""
    return tuple(stored_backbone(row) for row in session.scalars(select(Backbone).order_by(Backbone.id)))


def champions(session: Session, *, backbone: str) -> tuple[Champion, ...]:
    """The deltas that serve on a backbone, in the order in which their tasks were first learned there."""
    earlier = aliased(Delta)
    same = (earlier.task_id == Delta.task_id, earlier.backbone_id == Delta.backbone_id)
    first = select(func.min(earlier.id)).where(*same).scalar_subquery()
    found = (
        select(Delta)
        .join(Delta.backbone)
        .where(Backbone.fingerprint == backbone, Delta.status == "champion")
        .order_by(first)
    )
    return tuple(champion(row) for row in session.scalars(found))


def signatures(session: Session, *, backbone: str) -> tuple[StoredSignature, ...]:
    """The signatures of the deltas that serve on a backbone, in order of their tasks' arrival."""
    found = (
        select(Signature, Delta)
        .join(Delta, Delta.id == Signature.delta_id)
        .join(Backbone, Backbone.id == Delta.backbone_id)
        .where(Backbone.fingerprint == backbone, Delta.status == "champion")
        .order_by(Delta.task_id)
    )
    return tuple(stored_signature(*row) for row in session.execute(found))


def signature(session: Session, *, delta: str) -> StoredSignature:
    """The signature of a delta. Raises: NotFound, also where it has none."""
    row = delta_row(session, delta)
    found = session.scalar(select(Signature).where(Signature.delta_id == row.id))
    if found is None:
        raise NotFound(f"{delta} has no signature: it was imported without rows, or purged. Name a version with one.")
    return stored_signature(found, row)


def last_version(session: Session, *, task: str, backbone: str) -> StoredDelta | None:
    """The delta that serves a task on a backbone, else its newest that is not purged; None where there is none."""
    found = (
        select(Delta)
        .join(Delta.task)
        .join(Delta.backbone)
        .where(Task.name == task, Backbone.fingerprint == backbone, Delta.status != "purged")
        .order_by(case((Delta.status == "champion", 0), else_=1), Delta.version.desc())
        .limit(1)
    )
    row = session.scalar(found)
    return None if row is None else stored_delta(row)


def stream(session: Session, *, name: str) -> StoredStream:
    """The stream of that name with its positions. Raises: NotFound."""
    wanted = stream_row(session, name).id
    return stored_stream(session.scalars(select(Stream).where(Stream.id == wanted).options(WITH_POSITIONS)).one())


def positions(session: Session, *, stream: str) -> tuple[StoredPosition, ...]:
    """The positions of the stream of that name, in order; none where it was never begun."""
    found = select(Position).join(Position.stream).where(Stream.name == stream).order_by(Position.number)
    return tuple(stored_position(row) for row in session.scalars(found.options(joinedload(Position.delta))))


def streams(session: Session) -> tuple[StoredStream, ...]:
    """All streams with their positions, in the order in which they were begun."""
    every = select(Stream).options(WITH_POSITIONS).order_by(Stream.id)
    return tuple(stored_stream(row) for row in session.scalars(every))


def scores(
    session: Session,
    *,
    stream: str | None = None,
    delta: str | None = None,
    task: str | None = None,
    mode: Mode | None = None,
    split: str | None = None,
) -> tuple[StoredScore, ...]:
    """The scores that match all that is given, in order of step and then of measuring.

    Raises: NotFound for a stream, delta or task that is not registered.
    """
    wanted = {
        "stream_id": None if stream is None else stream_row(session, stream).id,
        "delta_id": None if delta is None else delta_row(session, delta).id,
        "task_id": None if task is None else task_row(session, task).id,
        "mode": mode,
        "split": split,
    }
    found = (
        select(ScoreRow, Delta, Stream.name)
        .where(*(getattr(ScoreRow, column) == value for column, value in wanted.items() if value is not None))
        .join(Delta, Delta.id == ScoreRow.delta_id)
        .outerjoin(Stream, Stream.id == ScoreRow.stream_id)
        .order_by(ScoreRow.step, ScoreRow.id)
    )
    return tuple(stored_score(*row) for row in session.execute(found))


def stream_of(session: Session, *, delta: str) -> str | None:
    """The name of the stream in which a delta was learned; None where it was learned alone. Raises: NotFound."""
    found = select(Stream.name).join(Position).where(Position.delta_id == delta_row(session, delta).id)
    return session.scalar(found.order_by(Position.id).limit(1))


def serving(session: Session, *, task: str) -> tuple[StoredDelta, ...]:
    """The deltas that serve a task, one for each backbone, in order of learning. Raises: NotFound."""
    found = select(Delta).where(Delta.task_id == task_row(session, task).id, Delta.status == "champion")
    return tuple(stored_delta(row) for row in session.scalars(found.order_by(Delta.id)))


def _ancestry(start: int) -> CTE:
    """The edges from the delta `start` upwards, each with every depth at which it is met."""
    edges = select(Lineage.id, Lineage.parent_id, literal(1).label("depth"))
    own = edges.where(Lineage.child_id == start).cte("ancestry", recursive=True)
    above = select(Lineage.id, Lineage.parent_id, own.c.depth + 1).join(own, Lineage.child_id == own.c.parent_id)
    return own.union(above)  # not `union_all`: a shared ancestor would multiply its own ancestors
