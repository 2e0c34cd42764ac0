"""Checks on a task that is submitted again: rows may change and labels be added, all else must stay."""

from collections import defaultdict
from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.errors import TaskChanged
from registry.records import TaskRecord
from registry.schema.tables import Delta, Task


def matching_tasks(session: Session, records: Iterable[TaskRecord]) -> dict[str, Task]:
    """Return the registered tasks with the records' names, by name; purged tasks are left out.

    Raises:
        TaskChanged: A registered task has another kind or metric, or one of its champions or candidates answers with a
            label that the record lacks.
    """
    record_by_name = {record.name: record for record in records}
    tasks = session.scalars(select(Task).where(Task.name.in_(record_by_name), Task.purged_at.is_(None))).all()
    labels_by_task = _answered_labels(session, tasks)
    for task in tasks:
        _require_same(task, record_by_name[task.name], labels=labels_by_task[task.id])
    return {task.name: task for task in tasks}


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


def _answered_labels(session: Session, tasks: Iterable[Task]) -> defaultdict[int, set[str]]:
    """Return the labels of champions and candidates, by task."""
    is_of_tasks = Delta.task_id.in_([task.id for task in tasks])
    versions = select(Delta.task_id, Delta.labels).where(is_of_tasks, Delta.status.in_(("champion", "candidate")))
    labels_by_task = defaultdict(set)
    for task, labels in session.execute(versions):
        labels_by_task[task].update(labels)
    return labels_by_task
