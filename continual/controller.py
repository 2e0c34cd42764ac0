"""The story of a stream: every task in order of arrival, each learned once, whatever happens in between.

The registry holds the state. A controller claims the next position that is free, learns its task, and registers task,
delta and scores in one unit of work; killed anywhere, it leaves the position to the next controller, which goes on from
its last checkpoint. The stream is measured in its own order, as far as nothing before is still to be learned.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial

from continual.backbone import Backbone
from continual.checkpoint import Checkpoint, Keeper
from continual.deltas import steps
from continual.errors import ClaimLost, ContinualError, Disconnected, InputError, MethodError
from continual.features import making_room
from continual.kinds import kind_of_spec
from continual.learn import Learned, learn, ready
from continual.record import backbone_record, record, task_record
from continual.routed import Examined, complete_routed_scores, examine, examine_stored
from continual.routing.totals import Totals
from continual.search import arms, possible, search_of
from continual.watcher import SILENT, Watcher
from registry import Registry, StoredPosition, Unit, claim_next, held, release, shown, this_holder
from tasks import Stream, TaskData, TaskSpec, load_stream

log = logging.getLogger(__name__)
WAIT = 1.0  # seconds between looks at positions that other controllers hold
RETRIES = 1  # how often a task that failed is tried again


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
        MethodError(problem) for spec in kept.resolved() for problem in misfits(backbone, spec)
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


def misfits(backbone: Backbone, spec: TaskSpec) -> Iterator[str]:
    """What of a task's kind and method is not offered on this backbone."""
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


def run(
    backbone: Backbone, registry: Registry, stream: Stream, *, watcher: Watcher = SILENT, retries: int = RETRIES
) -> dict[str, str]:
    """Learn what the stream has not learned yet; the tasks that failed, by name, with what went wrong.

    retries: how often a task that failed is tried again, after the others.
    Raises InputError before anything is learned, as `check` does, or where the stream was begun otherwise.
    """
    if retries < 0:
        raise InputError(f"a task cannot be tried again {retries} times; retries are 0 or more")
    loaded = check(backbone, registry, stream)
    begin(backbone, registry, stream, loaded)
    return _Controller(backbone, registry, stream, loaded, watcher, retries=retries).run()


def begin(backbone: Backbone, registry: Registry, stream: Stream, loaded: Sequence[TaskData]) -> None:
    """Write down that a stream begins, or that it goes on. Raises StreamChanged where it was begun otherwise."""

    def work(unit: Unit) -> None:
        unit.add_backbone(backbone_record(backbone))
        unit.begin_stream(
            stream.name,
            backbone=backbone.fingerprint,
            spec=stream.model_dump(mode="json"),
            entries=_entries(stream, loaded),
        )

    registry.write(work)


def learn_one(
    backbone: Backbone,
    registry: Registry,
    data: TaskData,
    stream: Stream,
    *,
    watcher: Watcher = SILENT,
    also: Callable[[Unit, str], None] = lambda unit, delta: None,
    checkpoint: Checkpoint | None = None,
    keep: Callable[[Checkpoint], None] = lambda checkpoint: None,
) -> tuple[Learned, str]:
    """Learn one task as its stream says and write it down, with whatever `also` writes in the same unit of work.

    keep, checkpoint: as in `learn`.
    """
    name = data.spec.name
    for note in data.notes:
        watcher.noted(name, note)
    watcher.began(name)
    if checkpoint:
        watcher.noted(name, f"goes on after epoch {len(checkpoint.course.curve) - 1}")
    learned = learn(
        registry,
        ready(backbone, data),
        seed=stream.seed,
        measure_gain=stream.measure_gain,
        report=partial(watcher.step, name),
        checkpoint=checkpoint,
        keep=keep,
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

    def __init__(
        self,
        backbone: Backbone,
        registry: Registry,
        stream: Stream,
        loaded: Sequence[TaskData],
        watcher: Watcher,
        *,
        retries: int,
    ) -> None:
        self.backbone, self.registry, self.stream, self.watcher = backbone, registry, stream, watcher
        numbers = {task.name: number for number, task in enumerate(stream.tasks)}
        self.loaded = {numbers[data.spec.name]: data for data in loaded}  # by position, without what was purged
        self.holder = this_holder()
        self.most = {position.number: position.attempts + 1 + retries for position in self._positions()}
        self.examined: dict[str, Callable[[], Examined]] = {}  # by delta
        self.totals = Totals()
        self.measured: dict[int, list[str]] = {}  # by step, the deltas that it was measured with
        self.told: set[str] = set()  # the deltas that the watcher knows of

    def run(self) -> dict[str, str]:
        """Learn whatever is free until nothing is left that could become free; the tasks that failed, and why."""
        while True:
            try:
                if left := self._round():
                    self._wait(left)
                else:
                    return {p.task: p.error or "" for p in self._look_around() if p.state == "failed"}
            except Disconnected as error:  # how far everything is, the registry says when it is back
                log.warning("stream %s: %s", self.stream.name, error)

    def _round(self) -> list[StoredPosition]:
        """Look around, and learn as long as anything is free; the positions that others still have to learn."""
        while True:
            self._look_around()
            number = claim_next(self.registry, self.stream.name, among=self.most, holder=self.holder)
            if number is None:
                return [position for position in self._positions() if self._is_open(position)]
            with held(self.registry, self.stream.name, number=number, holder=self.holder):
                self._learn(number, self.loaded[number])

    def _positions(self) -> list[StoredPosition]:
        """Those of this run: the file of another controller may name more tasks."""
        return [p for p in self.registry.positions(self.stream.name) if p.number in self.loaded and not p.purged]

    def _is_open(self, position: StoredPosition) -> bool:
        again = position.state == "failed" and position.attempts < self.most[position.number]
        return again or position.state in ("waiting", "held")

    def _wait(self, left: Sequence[StoredPosition]) -> None:
        for position in left:
            self.watcher.waiting(position.task, position.holder or "")
        time.sleep(WAIT)

    def _look_around(self) -> list[StoredPosition]:
        """Measure what can be measured, and tell of what anybody has learned; the positions as they are."""
        positions = self._positions()
        while not self._measure(positions):
            positions = self._positions()
        for position in positions:
            if position.delta and position.delta not in self.told:
                self.told.add(position.delta)
                self.watcher.learned(position.task, position.delta)
        return positions

    def _measure(self, positions: Sequence[StoredPosition]) -> bool:
        """Measure the stream in its order, up to what is still to be learned; False where it has changed meanwhile."""
        examined: dict[str, Callable[[], Examined]] = {}
        for position in positions:
            step = position.number
            if position.state in ("waiting", "held"):
                break
            if position.delta:
                stored = partial(examine_stored, self.backbone, self.registry, position.delta, self.loaded[step])
                examined[position.delta] = self.examined.setdefault(position.delta, cache(stored))
                if self.measured.get(step) != [*examined]:
                    if not complete_routed_scores(
                        self.registry,
                        examined,
                        stream=self.stream.name,
                        step=step,
                        last=position is positions[-1],
                        totals=self.totals,
                    ):
                        return False
                    self.measured[step] = [*examined]
        return True

    def _learn(self, number: int, data: TaskData) -> None:
        name, stream = data.spec.name, self.stream
        made_by = recipe(data, seed=stream.seed)
        keeper = Keeper(self.registry, stream.name, number=number, holder=self.holder, recipe=made_by)
        try:
            learned, delta = learn_one(
                self.backbone,
                self.registry,
                data,
                stream,
                watcher=self.watcher,
                also=lambda unit, delta: unit.finish(stream.name, number, delta=delta, holder=self.holder),
                checkpoint=keeper.last(),
                keep=keeper,
            )
        except ClaimLost as lost:  # taken for dead, and taken over: it is the other's task to report on
            log.warning("task %s: %s", name, lost)
        except Exception as error:  # one task's failure does not end the stream: registry and caller are told
            if not isinstance(error, ContinualError):  # a fault of the program: where it happened must be seen
                log.error("task %s failed", name, exc_info=True)
            self._fail(number, name, shown(f"{type(error).__name__}: {error}"))
        except BaseException:  # stopped by hand: the next run may go on at once
            release(self.registry, stream.name, number=number, holder=self.holder)
            raise
        else:
            self.examined[delta] = cache(lambda: examine(learned))

    def _fail(self, number: int, name: str, error: str) -> None:
        def work(unit: Unit) -> None:
            unit.fail(self.stream.name, number, error=error, holder=self.holder)

        try:
            self.registry.write(work)
        except ClaimLost as lost:
            log.warning("task %s: %s (here it failed: %s)", name, lost, error)
        else:
            self.watcher.failed(name, error)
