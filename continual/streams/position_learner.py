"""Learn the positions of a stream that this process holds, and register each when it is done.

Killed anywhere, a position is left to the next controller that claims it, which resumes from its last checkpoint.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from continual.backbones.backbone import Backbone
from continual.callbacks import NO_CALLBACKS, RunCallbacks
from continual.learning.checkpoint import Checkpoint, CheckpointWriter
from continual.learning.learn import LearnedTask, LearningRun
from continual.learning.prepared import prepare_task
from continual.learning.record import register_learned
from continual.reports.report import below_baseline, kept_start
from continual.streams.preflight import recipe_digest
from continual.training.joint import train_jointly
from continual.training.steps import TrainingCoroutine, run_training
from registry import Registry, UnitOfWork, hold_claim, redact, release
from registry.errors import ClaimLost
from tasks import Stream, TaskData
from tasks.errors import ContinualError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _TaskRun:
    """A task of a stream to learn; a `Trainable`, whose rows are tokenized only at its turn."""

    backbone: Backbone
    registry: Registry
    data: TaskData
    stream: Stream
    callbacks: RunCallbacks
    resume_from: Checkpoint | None = None
    on_checkpoint: Callable[[Checkpoint], None] = lambda checkpoint: None

    def epochs(self) -> TrainingCoroutine[LearnedTask]:
        name = self.data.spec.name
        for note in self.data.notes:
            self.callbacks.on_note(name, note)
        self.callbacks.on_start(name)
        task = prepare_task(self.backbone, self.data).with_fitted_kind().with_truncation_warning()
        for warning in task.data.warnings:
            self.callbacks.on_note(name, f"warning: {warning}")
        if self.resume_from:
            self.callbacks.on_note(name, f"goes on after epoch {len(self.resume_from.training_state.curve) - 1}")
        run = LearningRun(
            self.registry,
            task,
            seed=self.data.seed,
            measure_gain=self.stream.measure_gain,
            on_step=partial(self.callbacks.on_step, name),
            on_checkpoint=self.on_checkpoint,
            resume_from=self.resume_from,
        )
        return (yield from run.epochs())


def learn_task(
    backbone: Backbone, registry: Registry, data: TaskData, stream: Stream, *, callbacks: RunCallbacks = NO_CALLBACKS
) -> str:
    """Learn one task with the stream's settings and register it; return the name of its delta."""
    registry.claim_store()
    learned = run_training(_TaskRun(backbone, registry, data, stream, callbacks), seed=data.seed)
    return _register(backbone, registry, learned, callbacks=callbacks)


@dataclass(frozen=True)
class PositionLearner:
    """Learns positions of one stream, claimed in the name of one holder.

    Attributes:
        backbone: The frozen backbone.
        registry: Where positions are claimed and deltas registered.
        stream: The stream.
        callbacks: Called as learning goes on.
        holder: The name under which the positions are claimed.
        migrated_from: By task, the delta of another backbone whose recipe and rows are learned again.
    """

    backbone: Backbone
    registry: Registry
    stream: Stream
    callbacks: RunCallbacks
    holder: str
    migrated_from: Mapping[str, str] = field(default_factory=dict)

    def learn_positions(self, tasks: Mapping[int, TaskData]) -> dict[str, LearnedTask]:
        """Learn the tasks of these claimed positions jointly, and register each when it is done.

        A task that fails is marked so, with the reason; one that another controller took over is left to it. When the
        run is interrupted, the positions that are not done become free again.

        Returns:
            The learned tasks, by the names of their deltas.
        """
        learned_tasks: dict[str, LearnedTask] = {}
        unfinished = {str(number): number for number in tasks}
        with ExitStack() as claims:
            for number in tasks:
                claims.enter_context(hold_claim(self.registry, self.stream.name, number=number, holder=self.holder))
            try:
                runs = {name: self._task_run(number, tasks[number]) for name, number in unfinished.items()}
                for name, result in train_jointly(runs, seed=next(iter(tasks.values())).seed):
                    number = unfinished.pop(name)
                    if registered := self._finish(number, tasks[number].spec.name, result):
                        delta, learned = registered
                        learned_tasks[delta] = learned
            except BaseException:  # interrupted: the next run may resume at once
                for number in unfinished.values():
                    release(self.registry, self.stream.name, number=number, holder=self.holder)
                raise
        return learned_tasks

    def fail(self, number: int, name: str, error: Exception) -> None:
        """Mark a position as failed, and notify the callbacks."""
        reason = redact(f"{type(error).__name__}: {error}")

        def work(unit: UnitOfWork) -> None:
            unit.mark_failed(self.stream.name, number, error=reason, holder=self.holder)

        try:
            self.registry.write_with_retry(work)
        except ClaimLost as lost:
            log.warning("task %s: %s (here it failed: %s)", name, lost, reason)
        else:
            self.callbacks.on_failed(name, reason)

    def _task_run(self, number: int, data: TaskData) -> _TaskRun:
        recipe = recipe_digest(data)
        writer = CheckpointWriter(self.registry, self.stream.name, number=number, holder=self.holder, recipe=recipe)
        return _TaskRun(
            self.backbone,
            self.registry,
            data,
            self.stream,
            self.callbacks,
            resume_from=writer.load_latest(),
            on_checkpoint=writer,
        )

    def _finish(self, number: int, name: str, result: LearnedTask | Exception) -> tuple[str, LearnedTask] | None:
        """Register a learned task, or mark its position as failed; return the delta's name and the task."""

        def mark_learned(unit: UnitOfWork, delta: str) -> None:
            unit.mark_learned(self.stream.name, number, delta=delta, holder=self.holder)

        try:
            if isinstance(result, Exception):
                raise result
            delta = _register(
                self.backbone,
                self.registry,
                result,
                callbacks=self.callbacks,
                in_same_unit=mark_learned,
                migrated_from=self.migrated_from.get(name),
            )
            return delta, result
        except ClaimLost as lost:  # taken over by another controller, which reports on it
            log.warning("task %s: %s", name, lost)
        except Exception as error:  # one task's failure does not end the stream: it is recorded and reported
            if not isinstance(error, ContinualError):  # a bug: the traceback must be visible
                log.error("task %s failed", name, exc_info=True)
            self.fail(number, name, error)
        return None


def _register(
    backbone: Backbone,
    registry: Registry,
    learned: LearnedTask,
    *,
    callbacks: RunCallbacks,
    in_same_unit: Callable[[UnitOfWork, str], None] = lambda unit, delta: None,
    migrated_from: str | None = None,
) -> str:
    """Register a learned task; return the name of its delta."""
    delta = register_learned(registry, backbone, learned, in_same_unit=in_same_unit, migrated_from=migrated_from)
    name, stored = learned.task.data.spec.name, registry.delta(delta)
    for note in filter(None, (kept_start(learned.training), below_baseline(learned.baseline))):
        callbacks.on_note(name, note)
    if stored.version > 1:
        outcome = "serves from now on" if stored.status == "champion" else f"does not serve: {stored.reason}"
        callbacks.on_note(name, f"was learned before; {delta} {outcome}")
    return delta
