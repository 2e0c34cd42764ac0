"""Lineage queries: ancestors and descendants of deltas, and what depends on a backbone, task or data.

Recursion runs in the database: one statement at any depth.
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
    """List the lineage edges from a delta to its ancestors, or to its descendants, nearest first.

    Args:
        session: A session.
        delta: The delta's name.
        descendants: Follow children instead of parents.
        depth: Maximum distance; direct parents and children have depth 1.

    Returns:
        Rows of `continual lineage`, one per edge: delta, parent, kind, weight, score, gain, depth.

    Raises:
        NotFound: The delta is not registered.
        InputError: `depth` is below one.
    """
    edges = _edges(delta_row(session, delta).id, descendants=descendants, depth=depth)
    nearest = select(edges.c.id, func.min(edges.c.depth).label("depth")).group_by(edges.c.id).subquery()
    query = _named_edges(nearest.c.depth).join(nearest, nearest.c.id == Lineage.id)
    tiebreak = Lineage.parent_id if descendants else Lineage.child_id.desc()
    return to_dicts(session, query.order_by(nearest.c.depth, tiebreak, Lineage.weight.desc(), Lineage.id))


def stream_parents(session: Session, stream: str) -> list[ListingRow]:
    """List the edges from the deltas learned in a stream to their parents, in the form of `lineage`.

    Raises:
        NotFound: The stream is not registered.
    """
    learned = select(Position.delta_id).where(Position.stream_id == stream_row(session, stream).id)
    query = _named_edges(literal(1).label("depth")).where(Lineage.child_id.in_(learned))
    return to_dicts(session, query.order_by(Lineage.child_id, Lineage.weight.desc(), Lineage.id))


def siblings(session: Session, task: str, *, limit: int | None = None, after: int | None = None) -> list[ListingRow]:
    """List other tasks' deltas that share a parent with a delta of this task.

    Args:
        session: A session.
        task: The task's name.
        limit: Maximum number of rows.
        after: The `id` of the last row of the previous page.

    Returns:
        Rows: id, task, delta, parent, kind.

    Raises:
        NotFound: The task is not registered.
    """
    task_id, parent, origin = task_row(session, task).id, aliased(Delta), aliased(Task)
    parent_ids = select(Lineage.parent_id).join(Delta, Delta.id == Lineage.child_id).where(Delta.task_id == task_id)
    delta, parent_name = (
        delta_name_expression(Task, Delta).label("delta"),
        delta_name_expression(origin, parent).label("parent"),
    )
    query = (
        select(Lineage.id, Task.name.label("task"), delta, parent_name, Lineage.kind)
        .join(Delta, Delta.id == Lineage.child_id)
        .join(Task, Task.id == Delta.task_id)
        .join(parent, parent.id == Lineage.parent_id)
        .join(origin, origin.id == parent.task_id)
        .where(Lineage.parent_id.in_(parent_ids), Delta.task_id != task_id)
    )
    return to_dicts(session, paginate(query, Lineage.id, limit=limit, after=None if after is None else (after,)))


def dependents(
    session: Session,
    *,
    backbone: str | None = None,
    task: str | None = None,
    data: str | None = None,
    limit: int | None = None,
    after: str | None = None,
) -> list[ListingRow]:
    """List the deltas that depend on a backbone, a task or data, in order of learning.

    Args:
        session: A session.
        backbone: Fingerprint or name of a backbone.
        task: Name of a task: its deltas and their descendants.
        data: Fingerprint of a split: the deltas learned from it and their descendants.
        limit: Maximum number of rows.
        after: The name of the last delta of the previous page.

    Returns:
        Rows: delta, task, backbone, status, stream, depth (0 for a direct dependency, otherwise the number of lineage
        edges).

    Raises:
        NotFound: A name or fingerprint is not registered.
        InputError: Not exactly one of backbone, task and data is given.
    """
    if backbone is not None and task is None and data is None:
        query = _select_dependents(literal(0)).where(Delta.backbone_id.in_(_backbone_ids(session, backbone)))
    elif backbone is None and (task is None) != (data is None):
        reached = _descendants(
            _deltas_of_data(session, data) if data is not None else _deltas_of_task(session, task or "")
        )
        query = _select_dependents(reached.c.depth).join(reached, reached.c.id == Delta.id)
    else:
        raise InputError("dependents are of one thing: give a backbone, a task, or the fingerprint of a split.")
    cursor = None if after is None else (delta_row(session, after).id,)
    return to_dicts(session, paginate(query, Delta.id, limit=limit, after=cursor))


def _edges(start: int, *, descendants: bool, depth: int | None) -> CTE:
    """Return the edges reachable from the delta `start`, each with every depth at which it is reached."""
    near, far = (Lineage.parent_id, Lineage.child_id) if descendants else (Lineage.child_id, Lineage.parent_id)
    direct = select(Lineage.id, far.label("reached"), literal(1).label("depth")).where(near == start)
    walk = direct.cte("edges", recursive=True)
    step = select(Lineage.id, far, walk.c.depth + 1).join(walk, near == walk.c.reached)
    if depth is not None:
        step = step.where(walk.c.depth < validate_limit(depth))
    return walk.union(step)  # `union_all` would repeat the ancestors of a shared ancestor


def _named_edges(depth: Any) -> Select[*tuple[Any, ...]]:
    """Select edges with the names of both ends."""
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


def _backbone_ids(session: Session, name: str) -> list[int]:
    backbone_ids = session.scalars(
        select(Backbone.id).where(or_(Backbone.fingerprint == name, Backbone.name == name))
    ).all()
    if not backbone_ids:
        raise not_found("backbone", name, known_names=session.scalars(select(Backbone.name)))
    return list(backbone_ids)


def _deltas_of_task(session: Session, name: str) -> Select[int]:
    return select(Delta.id).where(Delta.task_id == task_row(session, name).id)


def _deltas_of_data(session: Session, fingerprint: str) -> Select[int]:
    delta_ids = select(Split.delta_id).where(Split.fingerprint == fingerprint)
    if session.scalar(delta_ids.limit(1)) is None:
        raise NotFound(
            f"no delta was learned from rows of fingerprint {fingerprint!r}. Fingerprints stand in the table `splits`; "
            "rows that have changed since have another one."
        )
    return delta_ids


def _descendants(start: Select[int]) -> Subquery:
    """Return the deltas of `start` and all their descendants, each with its minimum depth."""
    origins = start.subquery()
    walk = select(origins.c[0].label("id"), literal(0).label("depth")).cte("reached", recursive=True)
    closure = walk.union(select(Lineage.child_id, walk.c.depth + 1).join(walk, Lineage.parent_id == walk.c.id))
    return select(closure.c.id, func.min(closure.c.depth).label("depth")).group_by(closure.c.id).subquery()


def _select_dependents(depth: Any) -> Select[*tuple[Any, ...]]:
    streams = select(Stream.name).join(Position, Position.stream_id == Stream.id)
    streams = streams.where(Position.delta_id == Delta.id, Position.submitted_at.is_(None))
    first_stream = streams.order_by(Position.id).limit(1).scalar_subquery()
    names = delta_name_expression(Task, Delta).label("delta"), Task.name.label("task"), Backbone.name.label("backbone")
    return (
        select(*names, Delta.status, first_stream.label("stream"), depth.label("depth"))
        .select_from(Delta)
        .join(Task, Task.id == Delta.task_id)
        .join(Backbone, Backbone.id == Delta.backbone_id)
    )
