"""The story of a comparison: a stream learned by several strategies, each measured after every task.

What is learned is kept in the registry after each task. A comparison that was killed anywhere goes on after the last
task that is kept; one that is finished is not learned again.
"""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property

from continual.backbones.backbone import Backbone
from continual.callbacks import NO_CALLBACKS, RunCallbacks
from continual.deltas import can_be_retrained, method_settings
from continual.errors import MethodError
from continual.experiments.strategies.scoring import FrozenBaseline, step_scores, outputs_of_test_rows
from continual.experiments.strategies.state import StrategyState, load_state
from continual.experiments.strategies.strategy import Strategy, StrategyContext
from continual.learning.prepared import prepare_task
from continual.reports.comparison import ISOLATED, comparison
from continual.reports.report import Document
from continual.streams.controller import run_stream
from continual.streams.preflight import load_and_check, recipe_digest, register_stream, require_trainable
from continual.training.method_search import search_settings
from registry import Registry, StepRecord, StoredStrategy, StrategyRecord, save_strategy_step, start_strategy_run
from registry.errors import BlobError
from tasks import Method, Stream, TaskData
from tasks.errors import ContinualError, InputError

log = logging.getLogger(__name__)
FULL = Method(name="full")
PHASES = 1000  # of a task, in which progress is told


def compare_strategies(
    backbone: Backbone,
    registry: Registry,
    stream: Stream,
    strategies: Mapping[str, Strategy | None],
    *,
    callbacks: RunCallbacks = NO_CALLBACKS,
) -> Document:
    """Learn a stream by each strategy, as far as that was not done before; what came of it, with those that `failed`.

    callbacks: is told of strategies as `watched` names them, and of the tasks of isolated deltas.
    Isolated deltas are those of the stream itself: what `run_stream` has not learned yet is learned.
    Raises InputError before anything is learned, as `check` does, or for a method that cannot be trained twice.
    """
    require_trainable(backbone)
    if not strategies:
        raise InputError("there is nothing to compare: name at least one strategy")
    loaded = load_and_check(backbone, registry, stream)
    if not loaded:
        raise InputError(
            f"every task of stream {stream.name!r} was purged: nothing is left to compare. Add tasks to it"
        )
    for name, strategy in strategies.items():
        _require_repeatable(backbone, stream, name, strategy)
    register_stream(backbone, registry, stream, loaded)
    learning = _Comparison(backbone, registry, stream, loaded, callbacks)
    failed = []
    for name, strategy in strategies.items():
        try:
            learning.learn(name, strategy)
        except ContinualError as error:  # the others are learned all the same
            failed.append({"strategy": name, "error": f"{type(error).__name__}: {error}"})
            callbacks.on_failed(progress_name(name), failed[-1]["error"])
    recipes = [
        strategy_recipe_digest(stream, loaded, name, strategy) for name, strategy in strategies.items() if strategy
    ]
    runs = {run.recipe: run for run in registry.strategies(stream.name)}
    found = [runs[made] for made in recipes if made in runs and runs[made].steps]
    return comparison(registry, stream.name, found, isolated=ISOLATED in strategies) | {"failed": failed}


def progress_name(strategy: str) -> str:
    """What a callbacks is told of a strategy as: no task has such a name, as one may be called `joint`."""
    return f"strategy {strategy}"


def strategy_recipe_digest(stream: Stream, loaded: Sequence[TaskData], name: str, strategy: Strategy) -> str:
    """Digest of all that decides what a strategy comes to: the tasks with their rows, the seed, and all settings."""
    recipes = [recipe_digest(data) for data in loaded]
    common = stream.model_dump(mode="json", include={"method", "budget", "seed"})
    said = [recipes, common, name, asdict(strategy)]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def strategy_context(
    strategy: Strategy, backbone: Backbone, stream: Stream, loaded: Sequence[TaskData]
) -> StrategyContext:
    """The tasks of a stream as a strategy learns them: all by one method.

    A body that every task shares has edits wherever one of them needs edits.
    """
    method, rate = (stream.method, None) if strategy.full_learning_rate is None else (FULL, strategy.full_learning_rate)
    tasks = [prepare_task(backbone, _by(data, method, rate)) for data in loaded]
    common = replace(tasks[0].backbone, edits_decoder=any(task.kind.generates for task in tasks))
    budget = stream.budget if rate is None else stream.budget.model_copy(update={"learning_rate": rate})
    return StrategyContext(common, tuple(replace(task, backbone=common) for task in tasks), budget, stream.seed)


def _by(data: TaskData, method: Method, rate: float | None) -> TaskData:
    """The task by this method, at a learning rate of its own where one is given."""
    budget = data.spec.budget
    if budget and rate is not None:
        budget = budget.model_copy(update={"learning_rate": rate})
    return replace(data, spec=data.spec.model_copy(update={"method": method, "budget": budget}))


def _require_repeatable(backbone: Backbone, stream: Stream, name: str, strategy: Strategy | None) -> None:
    """Raises MethodError where a strategy would train values on another task that cannot be trained any more."""
    if strategy is None or strategy.full_learning_rate is not None:
        return
    other = f"Name another method in the stream file, or leave {name!r} out of --strategies."
    if search_settings(stream.method):
        raise MethodError(
            f"strategy {name!r} trains one delta on all tasks, and method 'auto' chooses for each. {other}"
        )
    if not can_be_retrained(backbone, method_settings(stream.method)):
        raise MethodError(
            f"strategy {name!r} trains one delta on task after task, and what method {stream.method.name!r} keeps of a "
            f"delta cannot be trained again. {other}"
        )


class _Comparison:
    """One process's way through the strategies; what they have in common is taken once."""

    def __init__(
        self,
        backbone: Backbone,
        registry: Registry,
        stream: Stream,
        loaded: Sequence[TaskData],
        callbacks: RunCallbacks,
    ) -> None:
        self.backbone, self.registry, self.stream = backbone, registry, stream
        self.loaded, self.callbacks = loaded, callbacks

    @cached_property
    def ground(self) -> FrozenBaseline:
        return FrozenBaseline([prepare_task(self.backbone, data) for data in self.loaded])

    def learn(self, name: str, strategy: Strategy | None) -> None:
        """Learn what is left to learn by a strategy."""
        self.callbacks.on_start(progress_name(name))
        if strategy is None:
            if failed := run_stream(self.backbone, self.registry, self.stream, callbacks=self.callbacks):
                raise ContinualError("; ".join(f"task {task}: {error}" for task, error in failed.items()))
        else:
            self._follow(name, strategy)
        self.callbacks.on_learned(progress_name(name), "learned")

    def _follow(self, name: str, strategy: Strategy) -> None:
        record = StrategyRecord(
            stream=self.stream.name,
            strategy=name,
            recipe=strategy_recipe_digest(self.stream, self.loaded, name, strategy),
            settings=asdict(strategy),
            tasks=tuple(data.spec.name for data in self.loaded),
        )
        begun, count = start_strategy_run(self.registry, record), len(self.loaded)
        if begun.finished_at:
            return
        given, state = strategy_context(strategy, self.backbone, self.stream, self.loaded), StrategyState()
        try:
            state = load_state(self.registry.blobs.get(begun.state)) if begun.state else state
        except BlobError as error:
            log.warning("strategy %s of %s learns from its beginning: %s", name, self.stream.name, error)
            begun = start_strategy_run(self.registry, record, restart=True)
        for number in range(count - 1 if strategy.trains_jointly else len(begun.steps), count):
            begun, state = self._step(begun, strategy, self._reporting(given, name, number), state, number)

    def _reporting(self, given: StrategyContext, name: str, number: int) -> StrategyContext:
        """What a task's learning is told to the callbacks as: its part of all tasks."""
        count = len(self.loaded)

        def report(done: int, total: int) -> None:
            self.callbacks.on_step(progress_name(name), number * PHASES + PHASES * done // total, count * PHASES)

        return replace(given, report=report)

    def _step(
        self, begun: StoredStrategy, strategy: Strategy, given: StrategyContext, state: StrategyState, number: int
    ) -> tuple[StoredStrategy, StrategyState]:
        began = time.perf_counter()
        step = strategy.learn(given, state, number)
        seconds = time.perf_counter() - began
        outputs = outputs_of_test_rows(given, step)
        after = replace(step.state, outputs=outputs)
        record = StepRecord(
            number=number,
            seconds=seconds,
            parameters=after.parameters,
            bytes=after.size,
            scores=tuple(step_scores(given, self.ground, step, outputs, number=number)),
        )
        last = number == len(given.tasks) - 1
        return save_strategy_step(self.registry, begun, record, state=None if last else after.to_bytes()), after
