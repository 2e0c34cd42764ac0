"""What is to move to a new backbone: the deltas that serve on the old one, with the rows and recipes they came from.

The registry keeps no rows, but it knows where each delta's came from. They are read again there, and must be what they
were to the row; what can be checked on the new backbone is checked of every task before any is learned.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from continual.backbones.backbone import Backbone
from continual.errors import MethodError
from continual.learning.champion_contest import matching_recorded_rows
from continual.learning.record import task_record
from continual.streams.preflight import incompatibilities, raise_problems, require_trainable
from registry import BackboneRecord, Registry, StoredDelta, StoredPosition, not_found
from tasks import TaskData, TaskSpec, load_task
from tasks.errors import DataError, InputError

FINGERPRINT_DIGITS = 8  # of the new backbone's fingerprint, in the name of a migration


@dataclass(frozen=True)
class TaskMigration:
    """A task on its way from one backbone to another.

    old: what serves it on the old one · new: what it was learned as on the new one, if it was · data: its rows and its
    recipe, None where the rows are not to be had · left: why it is left as it is.
    """

    old: StoredDelta
    new: str | None = None
    data: TaskData | None = None
    skip_reason: str | None = None

    @property
    def task(self) -> str:
        return self.old.task


@dataclass(frozen=True)
class Migration:
    """Tasks on their way from one backbone to another, and the stream that knows how far each has come."""

    backbone: Backbone
    registry: Registry
    origin: BackboneRecord
    stream: str
    tasks: tuple[TaskMigration, ...]

    @property
    def loaded(self) -> dict[str, TaskData]:
        """The rows of every task that has any, by its name."""
        return {own.task: own.data for own in self.tasks if own.data}

    @property
    def positions(self) -> tuple[StoredPosition, ...]:
        return self.registry.positions(self.stream)


def plan_migration(
    backbone: Backbone,
    registry: Registry,
    *,
    origin: str | None = None,
    tasks: Collection[str] | None = None,
    name: str | None = None,
) -> Migration:
    """What a migration to `backbone` would learn; nothing is written.

    origin: the old backbone, where several could be meant · tasks: those that are meant, without them all · name: of
    the stream, if not `migrate-OLD-to-NEW` and some digits of the new fingerprint.

    Raises InputError where nothing is to be migrated, the new backbone cannot take one of the tasks, or the name is
    that of another stream.
    """
    require_trainable(backbone)
    old = source_backbone(backbone, registry, origin)
    stream = (
        name or f"migrate-{_plain(old.name)}-to-{_plain(backbone.name)}-{backbone.fingerprint[:FINGERPRINT_DIGITS]}"
    )
    begun = {position.task: position for position in registry.positions(stream)}
    if begun and registry.stream(stream).spec.get("from") != old.name:
        raise InputError(f"stream {stream!r} is not that of a migration from {old.name!r}; give another --name")
    moves = tuple(
        task_migration(registry, own, begun.get(own.task)) for own in champions_to_migrate(registry, old, tasks)
    )
    if all(own.skip_reason for own in moves):
        raise InputError("\n".join(["nothing to migrate:", *(f"{own.old.name}: {own.skip_reason}" for own in moves)]))
    check_migratable(backbone, registry, [own.data for own in moves if own.data and not own.new])
    return Migration(backbone, registry, old, stream, moves)


def _plain(name: str) -> str:
    """A backbone's name, or the last part of its path, as a stream can be called."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name.rstrip("/").rpartition("/")[2])[:40]


def source_backbone(backbone: Backbone, registry: Registry, name: str | None) -> BackboneRecord:
    """The backbone to move from, by its name or fingerprint or, without one, the only other that something serves on.

    Raises InputError where there is none or it is the new one, NotFound for a name that is not registered.
    """
    known = registry.backbones()
    if name is None:
        others = [own for own in known if own.fingerprint != backbone.fingerprint]
        found = [own for own in others if registry.champions(own.fingerprint)]
    elif not (found := [own for own in known if name in (own.name, own.fingerprint)]):
        raise not_found("backbone", name, known=[own.name for own in known])
    if not found:
        raise InputError(f"nothing to migrate: no delta serves on a backbone other than {backbone.name!r}")
    if len(found) > 1:
        several = ", ".join(f"{own.name} ({own.fingerprint})" for own in found)
        raise InputError(f"several backbones can be meant; choose one by its fingerprint with --from: {several}")
    if found[0].fingerprint == backbone.fingerprint:
        raise InputError(f"{backbone.name!r} is the backbone to move from; name another one with --to")
    return found[0]


def champions_to_migrate(
    registry: Registry, origin: BackboneRecord, tasks: Collection[str] | None
) -> list[StoredDelta]:
    """The deltas that serve on the old backbone, of these tasks or all, in the order in which they were learned.

    Raises InputError where there is none, NotFound for a task that none serves.
    """
    found = [registry.delta(champion.delta) for champion in registry.champions(origin.fingerprint)]
    if not found:
        raise InputError(f"nothing to migrate: no delta serves on backbone {origin.name!r}")
    for task in tasks or ():
        if task not in {own.task for own in found}:
            raise not_found("task", task, known=[own.task for own in found])
    return sorted((own for own in found if tasks is None or own.task in tasks), key=lambda own: own.created_at)


def task_migration(registry: Registry, old: StoredDelta, position: StoredPosition | None) -> TaskMigration:
    """How far the task of `old` has come; `position`: its place in the stream of the migration, if it has one."""
    new = position.delta if position else None
    if new and old.name not in {edge["parent"] for edge in registry.lineage(new, depth=1)}:
        again = f"it was migrated before as {new}, from an earlier version; migrate it under another --name"
        return TaskMigration(old, skip_reason=again)
    try:
        return TaskMigration(old, new, reload_rows(old))
    except (DataError, ValidationError) as error:
        return TaskMigration(old, new, skip_reason=None if new else str(error))


def reload_rows(old: StoredDelta) -> TaskData:
    """The rows that a delta was learned from, read again, with its recipe. Raises DataError where they are others."""
    if old.data is None or old.data.folder is None:
        raise DataError(f"where the rows of {old.name} came from is not known, as of one that was imported")
    found = load_task(TaskSpec.model_validate(old.data.spec), folder=Path(old.data.folder), seed=old.data.seed)
    splits = {"train": found.train, "validation": found.validation, "test": found.test}
    train, validation, test = (matching_recorded_rows(rows, old.data, split) for split, rows in splits.items())
    if train is None or validation is None or test is None:
        raise DataError(f"task {old.task!r}: the rows are others than those that {old.name} was learned from")
    return replace(found, labels=old.labels, train=train, validation=validation, test=test)


def check_migratable(backbone: Backbone, registry: Registry, loaded: Collection[TaskData]) -> None:
    """Raises InputError, one message for all tasks, where the new backbone or the registry cannot take one."""
    problems: list[InputError] = []
    for data in loaded:
        problems += [
            MethodError(problem) for problem in (*incompatibilities(backbone, data.spec), *_cut(backbone, data))
        ]
        try:
            registry.check_tasks_unchanged([task_record(data)])
        except InputError as error:
            problems.append(error)
    raise_problems(problems)


def _cut(backbone: Backbone, data: TaskData) -> Iterator[str]:
    """A task that was compared on whole texts would lose the ends of them without a word."""
    assert data.spec.budget  # what `Stream.resolved` filled in
    if (length := data.spec.budget.max_length) > backbone.longest_input:
        yield (
            f"task {data.spec.name!r}: max_length {length} is more than the {backbone.longest_input} tokens that "
            f"backbone {backbone.name!r} takes; learn it there with a smaller one (`continual learn`), and leave it "
            "out here (--tasks)"
        )
