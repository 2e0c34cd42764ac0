"""Migrate to a new backbone: learn every task that is served on the old one again on the new one.

Each task is learned with the recipe and from the rows of its old delta, in the old order, as a position of a stream: it
is claimed by one process, resumes from the last checkpoint where another process died, and is evaluated and reported
like any other. The old deltas stay as they are, and go on serving the old backbone.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from continual.callbacks import NO_CALLBACKS, RunCallbacks
from continual.learning.record import backbone_record
from continual.streams.engine import LOCAL_ENGINE
from continual.streams.migration.outcome import MigrationOutcome, migration_outcomes
from continual.streams.migration.plan import Migration
from continual.streams.preflight import recipe_digest
from continual.streams.stream_run import StreamRun
from registry import UnitOfWork
from registry.errors import StreamChanged
from tasks import Stream


def run_migration(migration: Migration, callbacks: RunCallbacks = NO_CALLBACKS) -> list[MigrationOutcome]:
    """Learn what is not learned on the new backbone yet, and return the outcome of every task.

    A task that fails is reported, and tried again by the next migration.
    """
    _register_positions(migration)
    with LOCAL_ENGINE.prepare(_stream_run(migration, callbacks)) as learn:
        learn()
    return migration_outcomes(migration)


def _register_positions(migration: Migration) -> None:
    """Register the tasks to learn as positions after those that were registered before."""
    registry, rows = migration.registry, migration.loaded
    while True:
        registered = {position.task: position for position in migration.positions}
        specs = (
            {entry["name"]: entry for entry in registry.stream(migration.stream).spec["tasks"]} if registered else {}
        )
        to_learn = {task: data for task, data in rows.items() if task not in registered or not registered[task].delta}
        entries = {task: position.recipe for task, position in registered.items()}
        entries |= {task: recipe_digest(data) for task, data in to_learn.items()}
        specs |= {task: data.spec.model_dump(mode="json") for task, data in to_learn.items()}
        try:
            registry.write_with_retry(partial(_write_stream, migration, entries, [specs[task] for task in entries]))
            return
        except StreamChanged:
            if registered.keys() == {position.task for position in migration.positions}:
                raise  # otherwise another process has just registered other tasks: try again


def _write_stream(
    migration: Migration, entries: Mapping[str, str], specs: list[dict[str, Any]], unit: UnitOfWork
) -> None:
    backbone = migration.backbone
    unit.add_backbone(backbone_record(backbone))
    spec = {"name": migration.stream, "backbone": backbone.name, "from": migration.origin.name, "tasks": specs}
    unit.begin_stream(migration.stream, backbone=backbone.fingerprint, spec=spec, entries=list(entries.items()))


def _stream_run(migration: Migration, callbacks: RunCallbacks) -> StreamRun:
    positions = [position for position in migration.positions if position.task in migration.loaded]
    return StreamRun(
        migration.backbone,
        migration.registry,
        Stream.model_construct(name=migration.stream, measure_gain=False),
        {position.number: migration.loaded[position.task] for position in positions},
        {position.number: position.attempts + 1 for position in positions},
        callbacks,
        {task.task: task.old.name for task in migration.tasks},
    )
