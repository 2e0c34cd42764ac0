"""Removing what was learned: by choice (`delete_task`), or for data protection (`purge_task`).

Tombstones remain where lineage and streams need them: name, method, sizes and time, nothing that was learned.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, delete, or_, select, update
from sqlalchemy.orm import Session, aliased

from registry.derived import delete_stale
from registry.errors import NotFound, TaskNeeded
from registry.holders import is_alive
from registry.reads.blob_references import referenced_by
from registry.reads.lookups import task_row
from registry.registry import Registry
from registry.schema.base import database_now, now
from registry.schema.score_tables import Confusion, ScoreRow
from registry.schema.strategy_tables import StrategyRun
from registry.schema.tables import Checkpoint, Delta, Event, Lineage, OutboxRow, Position, Signature, Split, Task
from registry.unit_of_work import UnitOfWork
from registry.unreferenced import delete_unreferenced
from registry.writes.arrivals import cancel_and_forget
from registry.writes.events import record_event
from registry.writes.streams import redact_tasks


def purge_task(registry: Registry, task: str, *, reason: str | None = None) -> dict[str, int]:
    """Delete everything learned of a task, permanently, even if other deltas depend on it.

    One tombstone per version remains. MLflow gets a message with the runs to delete.

    Args:
        registry: The registry.
        task: The task's name.
        reason: For the history.

    Returns:
        The numbers of `versions` and `blobs` deleted.

    Raises:
        NotFound: There is no such task, or it was purged before.
        TaskNeeded: It is being learned.
    """
    with registry.unit_of_work() as unit:
        row = _lock_task(unit.session, task)
        versions = _versions(unit.session, row)
        digests = _make_tombstones(unit, row, versions, reason=reason)
    delete_stale(registry)
    return {"versions": len(versions), "blobs": len(delete_unreferenced(registry.engine, registry.blobs, digests))}


def delete_task(registry: Registry, task: str, *, reason: str | None = None) -> dict[str, int]:
    """Delete a task on which nothing else depends.

    As `purge_task`, but tombstones remain only of versions that lineage or a stream references, and of the last, whose
    number must not be reused.

    Args:
        registry: The registry.
        task: The task's name.
        reason: For the history.

    Returns:
        The numbers of `versions` and `blobs` deleted.

    Raises:
        NotFound: There is no such task, or it was purged before.
        TaskNeeded: It is being learned, or deltas of other tasks derive from it and not all of its versions are
            archived.
    """
    with registry.unit_of_work() as unit:
        row = _lock_task(unit.session, task)
        versions = _versions(unit.session, row)
        _reject_if_needed(unit.session, row, versions)
        digests = _make_tombstones(unit, row, versions, reason=reason)
        for version in _unreferenced(unit.session, versions):
            _delete_version(unit.session, version)
    delete_stale(registry)
    return {"versions": len(versions), "blobs": len(delete_unreferenced(registry.engine, registry.blobs, digests))}


def _lock_task(session: Session, name: str) -> Task:
    """Return the task, its row locked; raise NotFound if purged, TaskNeeded if it is being learned."""
    task = task_row(session, name)
    session.refresh(task, with_for_update=True)
    if task.purged_at is not None:
        raise NotFound(f"task {name!r} was purged on {task.purged_at:%Y-%m-%d}: nothing but its name is kept.")
    moment = database_now(session)
    for position in session.scalars(select(Position).where(Position.task_name == name, Position.state == "held")):
        if is_alive(
            position.holder or "", lease_valid=position.lease_until is not None and moment <= position.lease_until
        ):
            raise TaskNeeded(f"task {name!r} is being learned by {position.holder}. Wait for it, or stop it first.")
    return task


def _versions(session: Session, task: Task) -> Sequence[Delta]:
    """Return the task's deltas, newest first."""
    return session.scalars(select(Delta).where(Delta.task_id == task.id).order_by(Delta.id.desc())).all()


def _reject_if_needed(session: Session, task: Task, versions: Sequence[Delta]) -> None:
    child = aliased(Delta)
    edges = select(Delta, child).join(Lineage, Lineage.parent_id == Delta.id).join(child, child.id == Lineage.child_id)
    edges_to_others = session.execute(
        edges.where(Delta.task_id == task.id, child.task_id != task.id).order_by(child.id)
    ).all()
    serving = [version.name for version in versions if version.status in ("champion", "candidate")]
    if edges_to_others and serving:
        examples = ", ".join(
            f"{child_delta.name} came from {parent_delta.name}" for parent_delta, child_delta in edges_to_others[:3]
        )
        raise TaskNeeded(
            f"task {task.name!r} cannot be deleted: {examples}. Archive {', '.join(serving)} first "
            f"(`continual deltas archive`), or remove it all the same (`continual purge {task.name} --yes`)."
        )


def _make_tombstones(unit: UnitOfWork, task: Task, versions: Sequence[Delta], *, reason: str | None) -> set[str]:
    """Turn versions into tombstones and notify MLflow; return the digests of their blobs."""
    session, is_of_task = unit.session, Delta.task_id == task.id
    positions = or_(Position.task_id == task.id, Position.task_name == task.name)
    deltas_and_positions = (select(Delta.id).where(is_of_task), select(Position.id).where(positions))
    digests = set(referenced_by(session, is_of_task, positions))
    runs = [version.mlflow_run for version in versions if version.mlflow_run]
    names = [version.name for version in versions]
    is_involved = or_(*(column.in_(deltas_and_positions[0]) for column in (Confusion.delta_id, Confusion.routed_to_id)))
    session.execute(delete(Confusion).where(is_involved))
    for table in (Signature, Split):
        session.execute(delete(table).where(table.delta_id.in_(deltas_and_positions[0])))
    session.execute(delete(Checkpoint).where(Checkpoint.position_id.in_(deltas_and_positions[1])))
    session.execute(delete(ScoreRow).where(ScoreRow.task_id == task.id))
    session.execute(
        delete(OutboxRow).where(
            OutboxRow.subject.in_([*names, task.name]), OutboxRow.message.in_(("delta", "champion"))
        )
    )
    session.execute(update(Event).where(Event.task_id == task.id).values(reason=None))  # reasons quote scores
    for stream in {p.stream for p in session.scalars(select(Position).where(positions, ~IS_ARRIVAL))}:
        redact_tasks(stream, {task.name})
        unit.enqueue_message("stream", stream.name)
    for arrival in session.scalars(select(Position).where(positions, IS_ARRIVAL)):
        arrival.spec = None
        if arrival.state != "learned":
            cancel_and_forget(session, arrival)
    for run in _delete_strategy_runs(session, task.name):
        digests |= {run.state} if run.state else set()
        runs += [run.mlflow_run] if run.mlflow_run else []
    session.execute(update(Position).where(positions).values(error=None))
    # An arrival keeps its recipe, a digest of its file alone: the file may still lie in a watched folder.
    session.execute(update(Position).where(positions, Position.state == "learned", ~IS_ARRIVAL).values(recipe=""))
    for version in versions:
        if version.status != "purged":
            _clear(version)
            record_event(session, version, "purged", reason=reason)
    task.labels, task.spec, task.fingerprints, task.rows, task.purged_at = [], {}, {}, {}, now()
    session.flush()
    unit.enqueue_message("purged", task.name, runs=runs)
    return digests


IS_ARRIVAL = Position.submitted_at.is_not(None)
TOMBSTONE_DEFAULTS: dict[str, Any] = {
    "settings": {},
    "budget": {},
    "versions": {},
    "labels": [],
    "tried": [],
    "bytes": 0,
    "seed": 0,
}
TOMBSTONE_NULLS = ("digest", "predictions", "replay", "data", "mlflow_run", "reason", "examples_per_second")


def _clear(version: Delta) -> None:
    version.status = "purged"
    for column, value in (TOMBSTONE_DEFAULTS | dict.fromkeys(TOMBSTONE_NULLS)).items():
        setattr(version, column, value)


def _unreferenced(session: Session, versions: Sequence[Delta]) -> Iterator[Delta]:
    """Yield unreferenced tombstones, newest first, except the last version; the caller deletes each."""
    for version in versions[1:]:
        references: list[ColumnElement[bool]] = [Lineage.parent_id == version.id, Position.delta_id == version.id]
        queries = (select(Lineage.id).where(references[0]), select(Position.id).where(references[1]))
        if all(session.scalar(query.limit(1)) is None for query in queries):
            yield version


def _delete_strategy_runs(session: Session, task: str) -> list[StrategyRun]:
    """Delete and return every strategy run over the task: its results depend on the task's rows."""
    runs = [run for run in session.scalars(select(StrategyRun)) if task in run.tasks]
    for run in runs:
        session.delete(run)
    session.flush()
    return runs


def _delete_version(session: Session, version: Delta) -> None:
    session.execute(delete(Lineage).where(Lineage.child_id == version.id))
    session.execute(delete(Event).where(Event.delta_id == version.id))
    session.delete(version)
    session.flush()
