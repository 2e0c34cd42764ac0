"""Taking away what was learned: by choice (`delete_task`), or because a person may ask for it (`purge_task`).

What lineage and streams need stays as tombstones: a name, a method, sizes, an instant; nothing that was learned.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, delete, or_, select, update
from sqlalchemy.orm import Session, aliased

from registry.errors import NotFound, TaskNeeded
from registry.holders import is_alive
from registry.operations.garbage_collection import delete_unreferenced
from registry.reads.blob_references import referenced_by
from registry.reads.lookups import task_row
from registry.registry import Registry
from registry.schema.base import database_now, now
from registry.schema.score_tables import Confusion, ScoreRow
from registry.schema.strategy_tables import StrategyRun
from registry.schema.tables import Checkpoint, Delta, Event, Lineage, OutboxRow, Position, Signature, Split, Task
from registry.unit_of_work import UnitOfWork
from registry.writes.arrivals import cancel_and_forget
from registry.writes.events import record_event
from registry.writes.streams import redact_tasks


def purge_task(registry: Registry, task: str, *, reason: str | None = None) -> dict[str, int]:
    """Removes all that was learned of a task and all that was learned from, at once and for good; how much that was.

    Tombstones stay, one for each version. MLflow is told which of its runs to delete.
    Raises: NotFound, where there is none or it was purged before; TaskNeeded, while it is being learned.
    """
    with registry.unit_of_work() as unit:
        row = _there(unit.session, task)
        versions = _versions(unit.session, row)
        digests = _bury(unit, row, versions, reason=reason)
    return {"versions": len(versions), "blobs": len(delete_unreferenced(registry, digests))}


def delete_task(registry: Registry, task: str, *, reason: str | None = None) -> dict[str, int]:
    """Removes a task that nothing needs any more; how much that was.

    As `purge_task`, but tombstones stay only of versions that lineage or a stream needs, and of the last, whose number
    must not come again. Raises: NotFound; TaskNeeded, while it is being learned, or while deltas of other tasks came
    from it and one of its own is not archived.
    """
    with registry.unit_of_work() as unit:
        row = _there(unit.session, task)
        versions = _versions(unit.session, row)
        _refuse_needed(unit.session, row, versions)
        digests = _bury(unit, row, versions, reason=reason)
        for version in _unneeded(unit.session, versions):
            _drop(unit.session, version)
    return {"versions": len(versions), "blobs": len(delete_unreferenced(registry, digests))}


def _there(session: Session, name: str) -> Task:
    task = task_row(session, name)
    session.refresh(task, with_for_update=True)
    if task.purged_at is not None:
        raise NotFound(f"task {name!r} was purged on {task.purged_at:%Y-%m-%d}: nothing but its name is kept.")
    moment = database_now(session)
    for position in session.scalars(select(Position).where(Position.task_name == name, Position.state == "held")):
        if is_alive(position.holder or "", leased=position.lease_until is not None and moment <= position.lease_until):
            raise TaskNeeded(f"task {name!r} is being learned by {position.holder}. Wait for it, or stop it first.")
    return task


def _versions(session: Session, task: Task) -> Sequence[Delta]:
    """Its deltas, the newest first."""
    return session.scalars(select(Delta).where(Delta.task_id == task.id).order_by(Delta.id.desc())).all()


def _refuse_needed(session: Session, task: Task, versions: Sequence[Delta]) -> None:
    child = aliased(Delta)
    edges = select(Delta, child).join(Lineage, Lineage.parent_id == Delta.id).join(child, child.id == Lineage.child_id)
    needed = session.execute(edges.where(Delta.task_id == task.id, child.task_id != task.id).order_by(child.id)).all()
    serving = [version.name for version in versions if version.status in ("champion", "candidate")]
    if needed and serving:
        whose = ", ".join(f"{later.name} came from {own.name}" for own, later in needed[:3])
        raise TaskNeeded(
            f"task {task.name!r} cannot be deleted: {whose}. Archive {', '.join(serving)} first "
            f"(`continual deltas archive`), or remove it whatever needs it (`continual purge {task.name} --yes`)."
        )


def _bury(unit: UnitOfWork, task: Task, versions: Sequence[Delta], *, reason: str | None) -> set[str]:
    """Leaves tombstones, and tells MLflow; the digests of what they named."""
    session, own = unit.session, Delta.task_id == task.id
    positions = or_(Position.task_id == task.id, Position.task_name == task.name)
    of_task = (select(Delta.id).where(own), select(Position.id).where(positions))
    digests = set(referenced_by(session, own, positions))
    runs = [version.mlflow_run for version in versions if version.mlflow_run]
    names = [version.name for version in versions]
    confused = or_(*(column.in_(of_task[0]) for column in (Confusion.delta_id, Confusion.routed_to_id)))
    session.execute(delete(Confusion).where(confused))
    for table in (Signature, Split):
        session.execute(delete(table).where(table.delta_id.in_(of_task[0])))
    session.execute(delete(Checkpoint).where(Checkpoint.position_id.in_(of_task[1])))
    session.execute(delete(ScoreRow).where(ScoreRow.task_id == task.id))
    session.execute(
        delete(OutboxRow).where(
            OutboxRow.subject.in_([*names, task.name]), OutboxRow.message.in_(("delta", "champion"))
        )
    )
    session.execute(update(Event).where(Event.task_id == task.id).values(reason=None))  # they quote scores
    for stream in {p.stream for p in session.scalars(select(Position).where(positions, ~IS_ARRIVAL))}:
        redact_tasks(stream, {task.name})
        unit.enqueue_message("stream", stream.name)
    for arrival in session.scalars(select(Position).where(positions, IS_ARRIVAL)):
        arrival.spec = None
        if arrival.state != "learned":
            cancel_and_forget(session, arrival)
    for run in _drop_compared(session, task.name):
        digests |= {run.state} if run.state else set()
        runs += [run.mlflow_run] if run.mlflow_run else []
    session.execute(update(Position).where(positions).values(error=None))
    # An arrival's is of its file alone: one that still lies in a watched folder is not to be learned again.
    session.execute(update(Position).where(positions, Position.state == "learned", ~IS_ARRIVAL).values(recipe=""))
    for version in versions:
        if version.status != "purged":
            _forget(version)
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


def _forget(version: Delta) -> None:
    version.status = "purged"
    for column, value in (TOMBSTONE_DEFAULTS | dict.fromkeys(TOMBSTONE_NULLS)).items():
        setattr(version, column, value)


def _unneeded(session: Session, versions: Sequence[Delta]) -> Iterator[Delta]:
    """Of tombstones, the newest first, those whose place nothing holds open; the caller drops each as it comes."""
    for version in versions[1:]:
        holds: list[ColumnElement[bool]] = [Lineage.parent_id == version.id, Position.delta_id == version.id]
        uses = (select(Lineage.id).where(holds[0]), select(Position.id).where(holds[1]))
        if all(session.scalar(use.limit(1)) is None for use in uses):
            yield version


def _drop_compared(session: Session, task: str) -> list[StrategyRun]:
    """Drops every strategy's run that learned the task, since all of it was learned from its rows too; what it was."""
    dropped = [run for run in session.scalars(select(StrategyRun)) if task in run.tasks]
    for run in dropped:
        session.delete(run)
    session.flush()
    return dropped


def _drop(session: Session, version: Delta) -> None:
    session.execute(delete(Lineage).where(Lineage.child_id == version.id))
    session.execute(delete(Event).where(Event.delta_id == version.id))
    session.delete(version)
    session.flush()
