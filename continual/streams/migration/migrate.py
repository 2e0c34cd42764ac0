"""The story of a move to a new backbone: every task that is served on the old one is learned again on the new one.

By the recipe and from the rows that its delta was learned by, in the old order, as the positions of a stream: so each
is claimed by one process, goes on from its last checkpoint where another died, and is measured and told like any other.
The old deltas stay as they are, and go on serving the old backbone.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from continual.callbacks import NO_CALLBACKS, RunCallbacks
from continual.learning.record import backbone_record
from continual.streams.engine import LOCAL_ENGINE
from continual.streams.job import StreamRun
from continual.streams.migration.outcome import MigrationOutcome, migration_outcomes
from continual.streams.migration.plan import Migration
from continual.streams.preflight import recipe_digest
from registry import UnitOfWork
from registry.errors import StreamChanged
from tasks import Stream


def run_migration(migration: Migration, watcher: RunCallbacks = NO_CALLBACKS) -> list[MigrationOutcome]:
    """Learn what is not learned on the new backbone yet, and say what came of every task.

    A task that fails is reported, and tried again by the next migration.
    """
    _begin(migration)
    with LOCAL_ENGINE.prepare(_job(migration, watcher)) as learn:
        learn()
    return migration_outcomes(migration)


def _begin(migration: Migration) -> None:
    """Write down what is to be learned, behind what was begun before."""
    registry, loaded = migration.registry, migration.loaded
    while True:
        begun = {position.task: position for position in migration.positions}
        specs = {entry["name"]: entry for entry in registry.stream(migration.stream).spec["tasks"]} if begun else {}
        open_ = {t: data for t, data in loaded.items() if t not in begun or not begun[t].delta}
        entries = {task: position.recipe for task, position in begun.items()}
        entries |= {task: recipe_digest(data) for task, data in open_.items()}
        specs |= {task: data.spec.model_dump(mode="json") for task, data in open_.items()}
        try:
            registry.write_with_retry(partial(_begin_stream, migration, entries, [specs[task] for task in entries]))
            return
        except StreamChanged:
            if begun.keys() == {position.task for position in migration.positions}:
                raise  # else another process has just begun other tasks


def _begin_stream(
    migration: Migration, entries: Mapping[str, str], specs: list[dict[str, Any]], unit: UnitOfWork
) -> None:
    backbone = migration.backbone
    unit.add_backbone(backbone_record(backbone))
    spec = {"name": migration.stream, "backbone": backbone.name, "from": migration.origin.name, "tasks": specs}
    unit.begin_stream(migration.stream, backbone=backbone.fingerprint, spec=spec, entries=list(entries.items()))


def _job(migration: Migration, watcher: RunCallbacks) -> StreamRun:
    begun = [position for position in migration.positions if position.task in migration.loaded]
    return StreamRun(
        migration.backbone,
        migration.registry,
        Stream.model_construct(name=migration.stream, measure_gain=False),
        {position.number: migration.loaded[position.task] for position in begun},
        {position.number: position.attempts + 1 for position in begun},
        watcher,
        {own.task: own.old.name for own in migration.tasks},
    )
