"""A task that comes again: it may have other rows and more labels, and must otherwise be the same."""

from collections import defaultdict
from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.errors import TaskChanged
from registry.records import TaskRecord
from registry.schema.tables import Delta, Task


def matching_tasks(session: Session, records: Iterable[TaskRecord]) -> dict[str, Task]:
    """The rows of those of the tasks that are known, by name; of one that was purged only the name is.

    Raises: TaskChanged, where a kind or metric was another, or a version that serves, or may, answers with a label
    that is gone.
    """
    given = {record.name: record for record in records}
    known = session.scalars(select(Task).where(Task.name.in_(given), Task.purged_at.is_(None))).all()
    answered = _answered(session, known)
    for task in known:
        _require_same(task, given[task.name], labels=answered[task.id])
    return {task.name: task for task in known}


def _require_same(task: Task, record: TaskRecord, *, labels: set[str]) -> None:
    changes = [
        f"{key} {getattr(task, key)!r} became {getattr(record, key)!r}"
        for key in ("kind", "metric")
        if getattr(task, key) != getattr(record, key)
    ]
    if not labels <= set(record.labels):
        changes.append(f"labels {tuple(sorted(labels))} became {record.labels}")
    if changes:
        raise TaskChanged(
            f"task {record.name!r} is registered as another one: {'; '.join(changes)}. Mend the task, or give it "
            "another name. Labels may be added; for one to vanish, archive the versions that answer with it "
            "(`continual deltas archive`)."
        )


def _answered(session: Session, tasks: Iterable[Task]) -> defaultdict[int, set[str]]:
    """The labels of the versions that serve, or may, by task."""
    of_tasks = Delta.task_id.in_([task.id for task in tasks])
    versions = select(Delta.task_id, Delta.labels).where(of_tasks, Delta.status.in_(("champion", "candidate")))
    found = defaultdict(set)
    for task, labels in session.execute(versions):
        found[task].update(labels)
    return found
