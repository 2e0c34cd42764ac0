"""What came from what: deltas by their lineage, and what depends on a backbone or on data.

Recursion is the database's: one statement, however deep.
"""

from typing import Any

from sqlalchemy import CTE, Select, Subquery, func, literal, or_, select
from sqlalchemy.orm import Session, aliased

from registry.errors import NotFound, not_found
from registry.reads.lookups import delta_name_expression, delta_row, stream_row, task_row
from registry.reads.mapping import ListingRow, to_dicts
from registry.reads.pagination import paginate, validate_limit
from registry.schema.tables import Backbone, Delta, Lineage, Position, Split, Stream, Task
from tasks.errors import InputError


def lineage(session: Session, delta: str, *, descendants: bool = False, depth: int | None = None) -> list[ListingRow]:
    """Rows of `continual lineage`: delta, parent, kind, weight, score, gain, depth; one per edge, the nearest first.

    From the delta to its ancestors, or to its descendants, at most `depth` steps away; own parents and children have
    depth 1. Raises: NotFound; InputError for a depth below one.
    """
    edges = _edges(delta_row(session, delta).id, descendants=descendants, depth=depth)
    nearest = select(edges.c.id, func.min(edges.c.depth).label("depth")).group_by(edges.c.id).subquery()
    found = _named_edges(nearest.c.depth).join(nearest, nearest.c.id == Lineage.id)
    end = Lineage.parent_id if descendants else Lineage.child_id.desc()
    return to_dicts(session, found.order_by(nearest.c.depth, end, Lineage.weight.desc(), Lineage.id))


def stream_parents(session: Session, stream: str) -> list[ListingRow]:
    """The rows of `lineage` from the deltas that were learned in a stream to their parents. Raises: NotFound."""
    learned = select(Position.delta_id).where(Position.stream_id == stream_row(session, stream).id)
    found = _named_edges(literal(1).label("depth")).where(Lineage.child_id.in_(learned))
    return to_dicts(session, found.order_by(Lineage.child_id, Lineage.weight.desc(), Lineage.id))


def siblings(session: Session, task: str, *, limit: int | None = None, after: int | None = None) -> list[ListingRow]:
    """Other tasks' deltas that share a parent with this task's: id, task, delta, parent, kind.

    after: the `id` of the last row of the page before. Raises: NotFound.
    """
    wanted, parent, origin = task_row(session, task).id, aliased(Delta), aliased(Task)
    own = select(Lineage.parent_id).join(Delta, Delta.id == Lineage.child_id).where(Delta.task_id == wanted)
    delta, came_from = (
        delta_name_expression(Task, Delta).label("delta"),
        delta_name_expression(origin, parent).label("parent"),
    )
    found = (
        select(Lineage.id, Task.name.label("task"), delta, came_from, Lineage.kind)
        .join(Delta, Delta.id == Lineage.child_id)
        .join(Task, Task.id == Delta.task_id)
        .join(parent, parent.id == Lineage.parent_id)
        .join(origin, origin.id == parent.task_id)
        .where(Lineage.parent_id.in_(own), Delta.task_id != wanted)
    )
    return to_dicts(session, paginate(found, Lineage.id, limit=limit, after=None if after is None else (after,)))


def dependents(
    session: Session,
    *,
    backbone: str | None = None,
    task: str | None = None,
    data: str | None = None,
    limit: int | None = None,
    after: str | None = None,
) -> list[ListingRow]:
    """The deltas that depend on a backbone, a task or data: delta, task, backbone, status, stream, depth.

    Those learned on it have depth 0, those that came from them by lineage more. In order of learning.
    backbone: its fingerprint or name · data: the fingerprint of a split · after: the last delta of the page before.
    Raises: NotFound; InputError unless one of the three is given.
    """
    if backbone is not None and task is None and data is None:
        found = _dependents(literal(0)).where(Delta.backbone_id.in_(_backbones(session, backbone)))
    elif backbone is None and (task is None) != (data is None):
        reached = _reached(_of_data(session, data) if data is not None else _of_task(session, task or ""))
        found = _dependents(reached.c.depth).join(reached, reached.c.id == Delta.id)
    else:
        raise InputError("dependents are of one thing: give a backbone, a task, or the fingerprint of a split.")
    last = None if after is None else (delta_row(session, after).id,)
    return to_dicts(session, paginate(found, Delta.id, limit=limit, after=last))


def _edges(start: int, *, descendants: bool, depth: int | None) -> CTE:
    """The edges from the delta `start` on, each with every depth at which it is met."""
    this, other = (Lineage.parent_id, Lineage.child_id) if descendants else (Lineage.child_id, Lineage.parent_id)
    first = select(Lineage.id, other.label("reached"), literal(1).label("depth")).where(this == start)
    own = first.cte("edges", recursive=True)
    further = select(Lineage.id, other, own.c.depth + 1).join(own, this == own.c.reached)
    if depth is not None:
        further = further.where(own.c.depth < validate_limit(depth))
    return own.union(further)  # not `union_all`: a shared ancestor would multiply its own ancestors


def _named_edges(depth: Any) -> Select[*tuple[Any, ...]]:
    """Edges with the names of both ends."""
    child, parent, task, origin = aliased(Delta), aliased(Delta), aliased(Task), aliased(Task)
    names = delta_name_expression(task, child).label("delta"), delta_name_expression(origin, parent).label("parent")
    return (
        select(*names, Lineage.kind, Lineage.weight, Lineage.score, Lineage.gain, depth)
        .select_from(Lineage)
        .join(child, child.id == Lineage.child_id)
        .join(task, task.id == child.task_id)
        .join(parent, parent.id == Lineage.parent_id)
        .join(origin, origin.id == parent.task_id)
    )


def _backbones(session: Session, name: str) -> list[int]:
    found = session.scalars(select(Backbone.id).where(or_(Backbone.fingerprint == name, Backbone.name == name))).all()
    if not found:
        raise not_found("backbone", name, known=session.scalars(select(Backbone.name)))
    return list(found)


def _of_task(session: Session, name: str) -> Select[int]:
    return select(Delta.id).where(Delta.task_id == task_row(session, name).id)


def _of_data(session: Session, fingerprint: str) -> Select[int]:
    found = select(Split.delta_id).where(Split.fingerprint == fingerprint)
    if session.scalar(found.limit(1)) is None:
        raise NotFound(
            f"no delta was learned from rows of fingerprint {fingerprint!r}. Fingerprints stand in the table `splits`; "
            "rows that have changed since have another one."
        )
    return found


def _reached(start: Select[int]) -> Subquery:
    """The deltas of `start` and all that came from them, each with its least depth."""
    chosen = start.subquery()
    own = select(chosen.c[0].label("id"), literal(0).label("depth")).cte("reached", recursive=True)
    every = own.union(select(Lineage.child_id, own.c.depth + 1).join(own, Lineage.parent_id == own.c.id))
    return select(every.c.id, func.min(every.c.depth).label("depth")).group_by(every.c.id).subquery()


def _dependents(depth: Any) -> Select[*tuple[Any, ...]]:
    streams = select(Stream.name).join(Position, Position.stream_id == Stream.id)
    streams = streams.where(Position.delta_id == Delta.id, Position.submitted_at.is_(None))
    first = streams.order_by(Position.id).limit(1).scalar_subquery()
    names = delta_name_expression(Task, Delta).label("delta"), Task.name.label("task"), Backbone.name.label("backbone")
    return (
        select(*names, Delta.status, first.label("stream"), depth.label("depth"))
        .select_from(Delta)
        .join(Task, Task.id == Delta.task_id)
        .join(Backbone, Backbone.id == Delta.backbone_id)
    )
