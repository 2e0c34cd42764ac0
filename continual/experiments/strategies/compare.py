"""Compare strategies: learn a stream by each of them and measure it after every task.

The state after each task is stored in the registry. A comparison that was interrupted continues after the last stored
task; a finished one is not learned again.
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
from continual.experiments.strategies.scoring import FrozenBaseline, outputs_of_test_rows, step_scores
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
PROGRESS_STEPS = 1000  # units of progress that every task counts for, whatever its number of training steps


def compare_strategies(
    backbone: Backbone,
    registry: Registry,
    stream: Stream,
    strategies: Mapping[str, Strategy | None],
    *,
    callbacks: RunCallbacks = NO_CALLBACKS,
) -> Document:
    """Learn a stream by each strategy that has not finished it yet, and compare them.

    Args:
        backbone: The frozen backbone.
        registry: Where the stream and each strategy's steps are stored.
        stream: The stream.
        strategies: The strategies by name; None stands for isolated deltas, the stream's own, whose missing tasks
            `run_stream` learns.
        callbacks: Called for each strategy under its `progress_name`, and for each task of isolated deltas.

    Returns:
        The document of the comparison, with the strategies that raised an error under `failed`.

    Raises:
        InputError: A check before training failed (`load_and_check`), or nothing is to be compared.
        MethodError: A strategy cannot train the stream's method on several tasks.
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
    runner = _StrategyRunner(backbone, registry, stream, loaded, callbacks)
    failed = []
    for name, strategy in strategies.items():
        try:
            runner.learn(name, strategy)
        except ContinualError as error:  # continue with the next strategy
            failed.append({"strategy": name, "error": f"{type(error).__name__}: {error}"})
            callbacks.on_failed(progress_name(name), failed[-1]["error"])
    recipes = [
        strategy_recipe_digest(stream, loaded, name, strategy) for name, strategy in strategies.items() if strategy
    ]
    runs = {run.recipe: run for run in registry.strategies(stream.name)}
    compared = [runs[recipe] for recipe in recipes if recipe in runs and runs[recipe].steps]
    return comparison(registry, stream.name, compared, isolated=ISOLATED in strategies) | {"failed": failed}


def progress_name(strategy: str) -> str:
    """Return the name under which callbacks report a strategy: no task has it, though one may be `joint`."""
    return f"strategy {strategy}"


def strategy_recipe_digest(stream: Stream, loaded: Sequence[TaskData], name: str, strategy: Strategy) -> str:
    """Return the digest of all that determines a strategy's result: tasks with rows, seed, settings."""
    recipes = [recipe_digest(data) for data in loaded]
    common = stream.model_dump(mode="json", include={"method", "budget", "seed"})
    content = [recipes, common, name, asdict(strategy)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def strategy_context(
    strategy: Strategy, backbone: Backbone, stream: Stream, loaded: Sequence[TaskData]
) -> StrategyContext:
    """Prepare the tasks of a stream for a strategy, all with one method on one backbone.

    The shared delta has edits at every place where one of the tasks needs edits.
    """
    method, rate = (stream.method, None) if strategy.full_learning_rate is None else (FULL, strategy.full_learning_rate)
    tasks = [prepare_task(backbone, _with_method(data, method, rate)) for data in loaded]
    common = replace(tasks[0].backbone, generates=any(task.kind.generates for task in tasks))
    budget = stream.budget if rate is None else stream.budget.model_copy(update={"learning_rate": rate})
    return StrategyContext(common, tuple(replace(task, backbone=common) for task in tasks), budget, stream.seed)


def _with_method(data: TaskData, method: Method, rate: float | None) -> TaskData:
    """Return the task with this method and, unless None, this learning rate."""
    budget = data.spec.budget
    if budget and rate is not None:
        budget = budget.model_copy(update={"learning_rate": rate})
    return replace(data, spec=data.spec.model_copy(update={"method": method, "budget": budget}))


def _require_repeatable(backbone: Backbone, stream: Stream, name: str, strategy: Strategy | None) -> None:
    """Check that a strategy can train the values of the stream's method on one task after another.

    Raises:
        MethodError: It cannot: the method is `auto`, or its stored values cannot be trained again.
    """
    if strategy is None or strategy.full_learning_rate is not None:
        return
    advice = f"Name another method in the stream file, or leave {name!r} out of --strategies."
    if search_settings(stream.method):
        raise MethodError(
            f"strategy {name!r} trains one delta on all tasks, and method 'auto' chooses for each. {advice}"
        )
    if not can_be_retrained(backbone, method_settings(stream.method)):
        raise MethodError(
            f"strategy {name!r} trains one delta on task after task, and what method {stream.method.name!r} keeps of a "
            f"delta cannot be trained again. {advice}"
        )


class _StrategyRunner:
    """Learns a stream by one strategy after another; the frozen baseline is computed once for all."""

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
    def baseline(self) -> FrozenBaseline:
        return FrozenBaseline([prepare_task(self.backbone, data) for data in self.loaded])

    def learn(self, name: str, strategy: Strategy | None) -> None:
        """Learn the tasks that a strategy has not learned yet."""
        self.callbacks.on_start(progress_name(name))
        if strategy is None:
            if failed := run_stream(self.backbone, self.registry, self.stream, callbacks=self.callbacks):
                raise ContinualError("; ".join(f"task {task}: {error}" for task, error in failed.items()))
        else:
            self._learn_by(name, strategy)
        self.callbacks.on_learned(progress_name(name), "learned")

    def _learn_by(self, name: str, strategy: Strategy) -> None:
        record = StrategyRecord(
            stream=self.stream.name,
            strategy=name,
            recipe=strategy_recipe_digest(self.stream, self.loaded, name, strategy),
            settings=asdict(strategy),
            tasks=tuple(data.spec.name for data in self.loaded),
        )
        run, count = start_strategy_run(self.registry, record), len(self.loaded)
        if run.finished_at:
            return
        context, state = strategy_context(strategy, self.backbone, self.stream, self.loaded), StrategyState()
        try:
            state = load_state(self.registry.blobs.get(run.state)) if run.state else state
        except BlobError as error:
            log.warning("strategy %s of %s learns from its beginning: %s", name, self.stream.name, error)
            run = start_strategy_run(self.registry, record, restart=True)
        for number in range(count - 1 if strategy.trains_jointly else len(run.steps), count):
            run, state = self._step(run, strategy, self._with_progress(context, name, number), state, number)

    def _with_progress(self, context: StrategyContext, name: str, number: int) -> StrategyContext:
        """Return the context with a step callback that reports a task's progress as its part of all tasks."""
        count = len(self.loaded)

        def on_step(done: int, total: int) -> None:
            self.callbacks.on_step(
                progress_name(name), number * PROGRESS_STEPS + PROGRESS_STEPS * done // total, count * PROGRESS_STEPS
            )

        return replace(context, on_step=on_step)

    def _step(
        self, run: StoredStrategy, strategy: Strategy, context: StrategyContext, state: StrategyState, number: int
    ) -> tuple[StoredStrategy, StrategyState]:
        start = time.perf_counter()
        step = strategy.learn(context, state, number)
        seconds = time.perf_counter() - start
        outputs = outputs_of_test_rows(context, step)
        after = replace(step.state, outputs=outputs)
        record = StepRecord(
            number=number,
            seconds=seconds,
            parameters=after.parameters,
            bytes=after.size,
            scores=tuple(step_scores(context, self.baseline, step, outputs, number=number)),
        )
        last = number == len(context.tasks) - 1
        return save_strategy_step(self.registry, run, record, state=None if last else after.to_bytes()), after
