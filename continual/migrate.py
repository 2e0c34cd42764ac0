"""The story of a move to a new backbone: every task that is served on the old one is learned again on the new one.

By the recipe and from the rows that its delta was learned by, in the old order, as the positions of a stream: so each
is claimed by one process, goes on from its last checkpoint where another died, and is measured and told like any other.
The old deltas stay as they are, and go on serving the old backbone.
"""

import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from continual.checked import recipe
from continual.errors import StreamChanged
from continual.moved import Moved, outcomes
from continual.moves import Migration
from continual.positions import Learning
from continual.record import backbone_record
from continual.routed import Examined, complete_routed_scores, examine, examine_stored
from continual.routing.totals import Totals
from continual.watcher import SILENT, Watcher
from registry import Unit, claim_next, this_holder
from tasks import Stream

WAIT = 1.0  # seconds between looks at positions that other processes hold


def migrate(migration: Migration, watcher: Watcher = SILENT) -> list[Moved]:
    """Learn what is not learned on the new backbone yet, and say what came of every task.

    A task that fails is reported, and tried again by the next migration.
    """
    _begin(migration)
    _measure(migration, _learn(migration, watcher))
    return outcomes(migration)


def _begin(migration: Migration) -> None:
    """Write down what is to be learned, behind what was begun before."""
    registry, loaded = migration.registry, migration.loaded
    while True:
        begun = {position.task: position for position in migration.positions}
        specs = {entry["name"]: entry for entry in registry.stream(migration.stream).spec["tasks"]} if begun else {}
        open_ = {t: data for t, data in loaded.items() if t not in begun or not begun[t].delta}
        entries = {task: position.recipe for task, position in begun.items()}
        entries |= {task: recipe(data, seed=data.seed) for task, data in open_.items()}
        specs |= {task: data.spec.model_dump(mode="json") for task, data in open_.items()}
        try:
            registry.write(partial(_begin_stream, migration, entries, [specs[task] for task in entries]))
            return
        except StreamChanged:
            if begun.keys() == {position.task for position in migration.positions}:
                raise  # else another process has just begun other tasks


def _begin_stream(migration: Migration, entries: Mapping[str, str], specs: list[dict[str, Any]], unit: Unit) -> None:
    backbone = migration.backbone
    unit.add_backbone(backbone_record(backbone))
    spec = {"name": migration.stream, "backbone": backbone.name, "from": migration.origin.name, "tasks": specs}
    unit.begin_stream(migration.stream, backbone=backbone.fingerprint, spec=spec, entries=list(entries.items()))


def _learn(migration: Migration, watcher: Watcher) -> dict[str, Callable[[], Examined]]:
    """Learn whatever is free until nothing is left that could become free; what was learned here, by its delta."""
    registry, stream, loaded, holder = migration.registry, migration.stream, migration.loaded, this_holder()
    of = {position.number: loaded[position.task] for position in migration.positions if position.task in loaded}
    most = {position.number: position.attempts + 1 for position in migration.positions if position.number in of}
    moved = {own.task: own.old.name for own in migration.moves}
    examined: dict[str, Callable[[], Examined]] = {}
    while True:
        number = claim_next(registry, stream, among=most, holder=holder)
        if number is not None:
            data = of[number]
            alone = Stream(name=stream, seed=data.seed, tasks=(data.spec,), folder=data.folder)
            learning = Learning(migration.backbone, registry, alone, watcher, holder, moved)
            for delta, found in learning.learn({number: data}).items():
                watcher.learned(data.spec.name, delta)
                examined[delta] = cache(partial(examine, found))
        elif left := [p for p in migration.positions if p.number in of and p.state in ("waiting", "held")]:
            for position in left:
                watcher.waiting(position.task, position.holder or "")
            time.sleep(WAIT)
        else:
            return examined


def _measure(migration: Migration, examined: Mapping[str, Callable[[], Examined]]) -> None:
    """Measure the stream in its order, up to the first task whose rows are not to be had any more."""
    backbone, registry, loaded, totals = migration.backbone, migration.registry, migration.loaded, Totals()
    learned = [position for position in migration.positions if position.delta and not position.purged]
    looked: dict[str, Callable[[], Examined]] = {}
    for position in learned:
        if position.task not in loaded:
            return
        delta = position.delta or ""
        stored = partial(examine_stored, backbone, registry, delta, loaded[position.task])
        looked[delta] = examined.get(delta, cache(stored))
        last, step = position is learned[-1], position.number
        complete_routed_scores(registry, looked, stream=migration.stream, step=step, last=last, totals=totals)
