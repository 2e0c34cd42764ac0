"""The story of a stream: every task in order of arrival, each learned once, whatever happens in between.

The registry holds the state. A controller claims a position, learns its task, and registers task, delta, scores and the
stream's routed scores in one unit of work; killed anywhere, it leaves the position unlearned to the next controller.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from continual.backbone import Backbone
from continual.deltas import steps
from continual.errors import ContinualError, InputError, MethodError, RegistryError
from continual.features import making_room
from continual.kinds import kind_of_spec
from continual.learn import Learned, learn, ready
from continual.record import backbone_record, record, task_record
from continual.routed import Examined, complete_routed_scores, examine, examine_stored
from continual.search import arms, possible, search_of
from continual.warmstart import SUPPORTED
from registry import Registry, Unit, claim, held, release, shown, this_holder
from tasks import Stream, TaskData, TaskSpec, load_stream

log = logging.getLogger(__name__)
WAIT = 1.0  # seconds between looks at a position that another controller holds


@dataclass(frozen=True)
class Watcher:
    """What is told of a run while it goes on; every call begins with the task's name.

    noted: what was done to its rows · began: its learning starts · step: so many training steps of so many are done ·
    waiting: another controller holds it · learned: its delta is registered, now or by an earlier run, and the stream
    is measured after it · failed: it has no delta, and why.
    """

    noted: Callable[[str, str], None] = lambda task, note: None
    began: Callable[[str], None] = lambda task: None
    step: Callable[[str, int, int], None] = lambda task, done, total: None
    waiting: Callable[[str, str], None] = lambda task, holder: None
    learned: Callable[[str, str], None] = lambda task, delta: None
    failed: Callable[[str, str], None] = lambda task, error: None


SILENT = Watcher()


def check(backbone: Backbone, registry: Registry, stream: Stream, *, alone: bool = False) -> tuple[TaskData, ...]:
    """Load the rows of every task and check all that can be checked before training; nothing is written.

    A task that was purged since the stream learned it is left out: its rows may be gone as well.
    alone: the stream is a lone task, which no stream of its name has to do with.

    Raises InputError, one message with what is to be mended in all of the tasks: files, columns, labels, methods,
    warm starts, sites that the backbone lacks, and tasks that the registry knows with other labels.
    """
    positions = () if alone else registry.positions(stream.name)
    purged, learned = ({p.task for p in positions if p.delta and p.purged == gone} for gone in (True, False))
    kept = stream.model_copy(update={"tasks": tuple(task for task in stream.tasks if task.name not in purged)})
    problems: list[InputError] = [
        MethodError(problem) for spec in kept.resolved() for problem in _misfits(backbone, spec)
    ]
    loaded: tuple[TaskData, ...] = ()
    try:
        loaded = load_stream(kept)
        registry.require_same(task_record(data) for data in loaded if data.spec.name not in learned)
        if not alone:
            registry.require_begun_so(stream.name, _entries(stream, loaded))
    except InputError as error:
        problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise InputError("\n".join(map(str, problems)))
    return loaded


def _misfits(backbone: Backbone, spec: TaskSpec) -> Iterator[str]:
    """What of a task's kind, method and warm start is not offered, or not on this backbone."""
    if spec.warm_start not in SUPPORTED:
        yield (
            f"task {spec.name!r}: warm_start {spec.warm_start!r} is not offered yet; allowed: {', '.join(SUPPORTED)}"
        )
    try:
        assert spec.method  # what `Stream.resolved` fills in
        assert spec.budget
        kind = kind_of_spec(spec)
        fitting = making_room(replace(backbone, generates=kind.generates), *possible(spec.method))
        yield from (f"task {spec.name!r}: {misfit}" for misfit in kind.misfits(fitting, spec))
        for settings in possible(spec.method):
            list(steps(fitting, settings))  # looks for every site
        if search := search_of(spec.method):
            arms(fitting, search, spec.budget)
    except InputError as error:
        yield f"task {spec.name!r}: {error}"


def run(backbone: Backbone, registry: Registry, stream: Stream, *, watcher: Watcher = SILENT) -> dict[str, str]:
    """Learn what the stream has not learned yet; the tasks that failed, by name, with what went wrong.

    Raises InputError before anything is learned, as `check` does, or where the stream was begun otherwise.
    """
    loaded = check(backbone, registry, stream)
    with registry.unit() as unit:
        unit.add_backbone(backbone_record(backbone))
        unit.begin_stream(
            stream.name,
            backbone=backbone.fingerprint,
            spec=stream.model_dump(mode="json"),
            entries=_entries(stream, loaded),
        )
    controller = _Controller(backbone, registry, stream, watcher)
    numbers = {task.name: number for number, task in enumerate(stream.tasks)}
    for data in loaded:
        controller.settle(numbers[data.spec.name], data)
    return controller.failed


def learn_one(
    backbone: Backbone,
    registry: Registry,
    data: TaskData,
    stream: Stream,
    *,
    watcher: Watcher = SILENT,
    also: Callable[[Unit, str], None] = lambda unit, delta: None,
) -> tuple[Learned, str]:
    """Learn one task as its stream says and write it down, with whatever `also` writes in the same unit of work."""
    name = data.spec.name
    for note in data.notes:
        watcher.noted(name, note)
    watcher.began(name)
    learned = learn(
        registry,
        ready(backbone, data),
        seed=stream.seed,
        measure_gain=stream.measure_gain,
        report=partial(watcher.step, name),
    )
    delta = record(registry, backbone, learned, seed=stream.seed, also=also)
    stored = registry.delta(delta)
    if stored.version > 1:
        serves = "serves from now on" if stored.status == "champion" else f"does not serve: {stored.reason}"
        watcher.noted(name, f"was learned before; {delta} {serves}")
    return learned, delta


def _entries(stream: Stream, loaded: Sequence[TaskData]) -> list[tuple[str, str]]:
    """What the registry knows a stream's positions by; of a task that was purged nothing but its name."""
    recipes = {data.spec.name: recipe(data, seed=stream.seed) for data in loaded}
    return [(task.name, recipes.get(task.name, "")) for task in stream.tasks]


def recipe(data: TaskData, *, seed: int) -> str:
    """Digest of all that decides what is learned from a task: its spec, its rows, the seed."""
    said = [data.spec.model_dump(mode="json", exclude={"source"}), task_record(data).fingerprints, seed]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class _Controller:
    """One process's run through one stream."""

    def __init__(self, backbone: Backbone, registry: Registry, stream: Stream, watcher: Watcher) -> None:
        self.backbone, self.registry, self.stream, self.watcher = backbone, registry, stream, watcher
        self.holder = this_holder()
        self.examined: dict[str, Callable[[], Examined]] = {}  # by delta, in the stream's order
        self.failed: dict[str, str] = {}

    def settle(self, number: int, data: TaskData) -> None:
        """Learn the task at a position, or wait until another controller has; then measure the stream after it."""
        name, stream = data.spec.name, self.stream.name
        while not claim(self.registry, stream, number=number, holder=self.holder):
            position = self.registry.stream(stream).positions[number]
            if position.delta:
                before = partial(examine_stored, self.backbone, self.registry, position.delta, data)
                self.examined[position.delta] = cache(before)
                break
            self.watcher.waiting(name, position.holder or "")
            time.sleep(WAIT)
        else:
            with held(self.registry, stream, number=number, holder=self.holder):
                self._learn(number, data)
        if name not in self.failed:
            complete_routed_scores(self.registry, self.examined, stream=stream, step=number)
            self.watcher.learned(name, list(self.examined)[-1])

    def _learn(self, number: int, data: TaskData) -> None:
        name, stream = data.spec.name, self.stream
        try:
            learned, delta = learn_one(
                self.backbone,
                self.registry,
                data,
                stream,
                watcher=self.watcher,
                also=lambda unit, delta: unit.finish(stream.name, number, delta=delta, holder=self.holder),
            )
        except Exception as error:  # one task's failure does not end the stream: registry and caller are told
            if not isinstance(error, ContinualError):  # a fault of the program: where it happened must be seen
                log.error("task %s failed", name, exc_info=True)
            self._fail(number, name, shown(f"{type(error).__name__}: {error}"))
        except BaseException:  # stopped by hand: the next run may go on at once
            release(self.registry, stream.name, number=number, holder=self.holder)
            raise
        else:
            self.examined[delta] = lambda: examine(learned)

    def _fail(self, number: int, name: str, error: str) -> None:
        try:
            with self.registry.unit() as unit:
                unit.fail(self.stream.name, number, error=error, holder=self.holder)
        except RegistryError as lost:  # another controller has taken the position over: the task is its own now
            log.warning("task %s: %s", name, lost)
        self.failed[name] = error
        self.watcher.failed(name, error)
