"""Plan a migration to a new backbone: the deltas that serve on the old one, their rows and recipes.

The registry stores no rows, but where each delta's rows came from. They are read again from there, and must be
identical row for row; all checks on the new backbone are made for every task before any is learned.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from continual.backbones.backbone import Backbone
from continual.errors import MethodError
from continual.learning.record import task_record
from continual.learning.recorded_rows import reload_rows
from continual.streams.preflight import incompatibilities, raise_problems, require_trainable
from registry import BackboneRecord, Registry, StoredDelta, StoredPosition, not_found
from tasks import TaskData
from tasks.errors import DataError, InputError

FINGERPRINT_DIGITS = 8  # digits of the new backbone's fingerprint in the name of a migration's stream


@dataclass(frozen=True)
class TaskMigration:
    """One task of a migration.

    Attributes:
        old: The delta that serves the task on the old backbone.
        new: The delta learned on the new backbone, or None.
        data: The task's rows and recipe; None where the rows cannot be read.
        skip_reason: Why the task is not migrated, or None.
    """

    old: StoredDelta
    new: str | None = None
    data: TaskData | None = None
    skip_reason: str | None = None

    @property
    def task(self) -> str:
        """The name of the task."""
        return self.old.task


@dataclass(frozen=True)
class Migration:
    """A migration from one backbone to another, and the stream that holds its progress.

    Attributes:
        backbone: The new backbone.
        registry: The registry of both backbones.
        origin: The old backbone.
        stream: The name of the migration's stream.
        tasks: The tasks, in the order in which they were learned on the old backbone.
    """

    backbone: Backbone
    registry: Registry
    origin: BackboneRecord
    stream: str
    tasks: tuple[TaskMigration, ...]

    @property
    def loaded(self) -> dict[str, TaskData]:
        """The rows by task, for the tasks that have any."""
        return {task.task: task.data for task in self.tasks if task.data}

    @property
    def positions(self) -> tuple[StoredPosition, ...]:
        """The positions of the migration's stream."""
        return self.registry.positions(self.stream)


def plan_migration(
    backbone: Backbone,
    registry: Registry,
    *,
    origin: str | None = None,
    tasks: Collection[str] | None = None,
    name: str | None = None,
) -> Migration:
    """Plan the migration of deltas to `backbone`; nothing is written.

    Args:
        backbone: The new backbone.
        registry: The registry of both backbones.
        origin: The name or fingerprint of the old backbone; needed where deltas serve on several others.
        tasks: The names of the tasks to migrate; None migrates all.
        name: The name of the migration's stream; by default `migrate-OLD-to-NEW-` and the first digits of the new
            fingerprint.

    Raises:
        InputError: Nothing is to be migrated, the new backbone cannot learn one of the tasks, or `name` is the name of
            another stream.
        NotFound: The old backbone or a task is not registered.
    """
    require_trainable(backbone)
    old = source_backbone(backbone, registry, origin)
    stream = name or _default_stream_name(old, backbone)
    positions = {position.task: position for position in registry.positions(stream)}
    if positions and registry.stream(stream).spec.get("from") != old.name:
        raise InputError(f"stream {stream!r} does not belong to a migration from {old.name!r}; give another --name")
    migrations = tuple(
        task_migration(registry, champion, positions.get(champion.task))
        for champion in champions_to_migrate(registry, old, tasks)
    )
    if all(task.skip_reason for task in migrations):
        raise InputError(
            "\n".join(["nothing to migrate:", *(f"{task.old.name}: {task.skip_reason}" for task in migrations)])
        )
    check_migratable(backbone, registry, [task.data for task in migrations if task.data and not task.new])
    return Migration(backbone, registry, old, stream, migrations)


def _default_stream_name(old: BackboneRecord, new: Backbone) -> str:
    digits = new.fingerprint[:FINGERPRINT_DIGITS]
    return f"migrate-{_stream_name_part(old.name)}-to-{_stream_name_part(new.name)}-{digits}"


def _stream_name_part(name: str) -> str:
    """Return a backbone's name, or the last part of its path, in characters allowed in a stream's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name.rstrip("/").rpartition("/")[2])[:40]


def source_backbone(backbone: Backbone, registry: Registry, name: str | None) -> BackboneRecord:
    """Return the backbone to migrate from.

    Args:
        backbone: The new backbone.
        registry: The registry.
        name: The old backbone's name or fingerprint; None takes the only other backbone that deltas serve on.

    Raises:
        InputError: There is no such backbone, there are several, or it is the new one.
        NotFound: `name` is not registered.
    """
    registered = registry.backbones()
    if name is None:
        candidates = [
            record
            for record in registered
            if record.fingerprint != backbone.fingerprint and registry.champions(record.fingerprint)
        ]
    elif not (candidates := [record for record in registered if name in (record.name, record.fingerprint)]):
        raise not_found("backbone", name, known_names=[record.name for record in registered])
    if not candidates:
        raise InputError(f"nothing to migrate: no delta serves on a backbone other than {backbone.name!r}")
    if len(candidates) > 1:
        several = ", ".join(f"{record.name} ({record.fingerprint})" for record in candidates)
        raise InputError(f"several backbones can be meant; choose one by its fingerprint with --from: {several}")
    if candidates[0].fingerprint == backbone.fingerprint:
        raise InputError(f"{backbone.name!r} is the backbone to move from; name another one with --to")
    return candidates[0]


def champions_to_migrate(
    registry: Registry, origin: BackboneRecord, tasks: Collection[str] | None
) -> list[StoredDelta]:
    """Return the deltas that serve on the old backbone, in the order in which they were learned.

    Args:
        registry: The registry.
        origin: The old backbone.
        tasks: The names of the tasks; None takes all.

    Raises:
        InputError: No delta serves on the old backbone.
        NotFound: No delta serves one of `tasks`.
    """
    champions = [registry.delta(champion.delta) for champion in registry.champions(origin.fingerprint)]
    if not champions:
        raise InputError(f"nothing to migrate: no delta serves on backbone {origin.name!r}")
    for task in tasks or ():
        if task not in {delta.task for delta in champions}:
            raise not_found("task", task, known_names=[delta.task for delta in champions])
    chosen = [delta for delta in champions if tasks is None or delta.task in tasks]
    return sorted(chosen, key=lambda delta: delta.created_at)


def task_migration(registry: Registry, old: StoredDelta, position: StoredPosition | None) -> TaskMigration:
    """Return how far the migration of one task has come.

    Args:
        registry: The registry.
        old: The delta that serves the task on the old backbone.
        position: The task's position in the migration's stream, if it has one.
    """
    new = position.delta if position else None
    if new and old.name not in {edge["parent"] for edge in registry.lineage(new, depth=1)}:
        reason = f"it was migrated before as {new}, from an earlier version; migrate it under another --name"
        return TaskMigration(old, skip_reason=reason)
    try:
        return TaskMigration(old, new, reload_rows(old))
    except (DataError, ValidationError) as error:
        return TaskMigration(old, new, skip_reason=None if new else str(error))


def check_migratable(backbone: Backbone, registry: Registry, loaded: Collection[TaskData]) -> None:
    """Raise one error for all tasks that cannot be learned on the new backbone.

    Raises:
        InputError: The new backbone lacks something that a task needs, or the registry has the task with other labels.
    """
    problems: list[InputError] = []
    for data in loaded:
        problems += [
            MethodError(problem)
            for problem in (*incompatibilities(backbone, data.spec), *_truncation_problems(backbone, data))
        ]
        try:
            registry.check_tasks_unchanged([task_record(data)])
        except InputError as error:
            problems.append(error)
    raise_problems(problems)


def _truncation_problems(backbone: Backbone, data: TaskData) -> Iterator[str]:
    """Yield a message where texts that the old backbone read whole would be silently truncated."""
    assert data.spec.budget  # what `Stream.resolved` filled in
    if (length := data.spec.budget.max_length) > backbone.longest_input:
        yield (
            f"task {data.spec.name!r}: max_length {length} is more than the {backbone.longest_input} tokens that "
            f"backbone {backbone.name!r} takes; learn it there with a smaller one (`continual learn`), and leave it "
            "out here (--tasks)"
        )
