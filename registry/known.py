"""A task that comes again: it may have other rows and more labels, and must otherwise be the same."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.errors import TaskChanged
from registry.records import TaskRecord
from registry.tables import Delta, Task


def known_task(session: Session, record: TaskRecord) -> Task | None:
    """The row of the task of that name; None where there is none, or only the name of one that was purged.

    Raises: TaskChanged, where its kind or metric was another, or a version that serves, or may, answers with a label
    that it has no longer.
    """
    task = session.scalar(select(Task).where(Task.name == record.name))
    if task is None or task.purged_at is not None:
        return None
    changes = [
        f"{key} {getattr(task, key)!r} became {getattr(record, key)!r}"
        for key in ("kind", "metric")
        if getattr(task, key) != getattr(record, key)
    ]
    labels = _answered(session, task)
    if not labels <= set(record.labels):
        changes.append(f"labels {tuple(sorted(labels))} became {record.labels}")
    if changes:
        raise TaskChanged(
            f"task {record.name!r} is registered as another one: {'; '.join(changes)}. Mend the task, or give it "
            "another name. Labels may be added; for one to vanish, archive the versions that answer with it "
            "(`continual deltas archive`)."
        )
    return task


def _answered(session: Session, task: Task) -> set[str]:
    """The labels of the versions that serve, or may."""
    versions = select(Delta.labels).where(Delta.task_id == task.id, Delta.status.in_(("champion", "candidate")))
    return {label for labels in session.scalars(versions) for label in labels}
