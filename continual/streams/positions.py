"""Positions of a stream that one process holds: their tasks are learned and written down, or let go.

Killed anywhere, a position is left to whoever claims it next, who goes on from its last checkpoint.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from continual.backbones.backbone import Backbone
from continual.callbacks import NO_CALLBACKS, RunCallbacks
from continual.learning.checkpoint import Checkpoint, CheckpointWriter
from continual.learning.learn import LearnedTask, learn_task_coroutine
from continual.learning.prepared import prepare_task
from continual.learning.record import register_learned
from continual.streams.preflight import recipe_digest
from continual.training.joint import train_jointly
from continual.training.steps import TrainingCoroutine, run_training
from registry import Registry, UnitOfWork, hold_claim, redact, release
from registry.errors import ClaimLost
from tasks import Stream, TaskData
from tasks.errors import ContinualError

log = logging.getLogger(__name__)


def learn_task(
    backbone: Backbone, registry: Registry, data: TaskData, stream: Stream, *, watcher: RunCallbacks = NO_CALLBACKS
) -> str:
    """Learn one task as its stream says and write it down; the name of its delta."""
    learned = run_training(_learning_of(backbone, registry, data, stream, watcher=watcher), seed=data.seed)
    return _written(backbone, registry, learned, watcher=watcher)


@dataclass(frozen=True)
class PositionLearner:
    """How the positions of a stream are learned here, and in whose name they are held.

    moved: by task, the delta of another backbone whose recipe and rows it is learned by, as in `record`.
    """

    backbone: Backbone
    registry: Registry
    stream: Stream
    watcher: RunCallbacks
    holder: str
    migrated_from: Mapping[str, str] = field(default_factory=dict)

    def learn_positions(self, tasks: Mapping[int, TaskData]) -> dict[str, LearnedTask]:
        """Learn the tasks of these positions, which `holder` holds, side by side; what was learned, by its delta.

        Each is written down when it is done. One that fails is marked so, with what went wrong; one that another
        has taken over meanwhile is left to it; stopped by hand, all that are not done wait again.
        """
        found: dict[str, LearnedTask] = {}
        left = {str(number): number for number in tasks}
        with ExitStack() as holding:
            for number in tasks:
                holding.enter_context(hold_claim(self.registry, self.stream.name, number=number, holder=self.holder))
            try:
                begun = {name: self._begun(number, tasks[number]) for name, number in left.items()}
                for name, learned in train_jointly(begun, seed=next(iter(tasks.values())).seed):
                    number = left.pop(name)
                    if delta := self._done(number, tasks[number].spec.name, learned):
                        found[delta[0]] = delta[1]
            except BaseException:  # stopped by hand: the next run may go on at once
                for number in left.values():
                    release(self.registry, self.stream.name, number=number, holder=self.holder)
                raise
        return found

    def _begun(self, number: int, data: TaskData) -> TrainingCoroutine[LearnedTask]:
        made_by = recipe_digest(data)
        keeper = CheckpointWriter(self.registry, self.stream.name, number=number, holder=self.holder, recipe=made_by)
        return _learning_of(
            self.backbone,
            self.registry,
            data,
            self.stream,
            watcher=self.watcher,
            checkpoint=keeper.load_latest(),
            keep=keeper,
        )

    def _done(self, number: int, name: str, found: LearnedTask | Exception) -> tuple[str, LearnedTask] | None:
        """Write down what came of a task; its delta, where there is one."""

        def also(unit: UnitOfWork, delta: str) -> None:
            unit.mark_learned(self.stream.name, number, delta=delta, holder=self.holder)

        try:
            if isinstance(found, Exception):
                raise found
            delta = _written(
                self.backbone,
                self.registry,
                found,
                watcher=self.watcher,
                also=also,
                moved=self.migrated_from.get(name),
            )
            return delta, found
        except ClaimLost as lost:  # taken for dead, and taken over: it is the other's task to report on
            log.warning("task %s: %s", name, lost)
        except Exception as error:  # one task's failure does not end the stream: registry and caller are told
            if not isinstance(error, ContinualError):  # a fault of the program: where it happened must be seen
                log.error("task %s failed", name, exc_info=True)
            self.fail(number, name, error)
        return None

    def fail(self, number: int, name: str, error: Exception) -> None:
        """Mark a position as failed, and tell the watcher."""
        said = redact(f"{type(error).__name__}: {error}")

        def work(unit: UnitOfWork) -> None:
            unit.mark_failed(self.stream.name, number, error=said, holder=self.holder)

        try:
            self.registry.write_with_retry(work)
        except ClaimLost as lost:
            log.warning("task %s: %s (here it failed: %s)", name, lost, said)
        else:
            self.watcher.on_failed(name, said)


def _learning_of(
    backbone: Backbone,
    registry: Registry,
    data: TaskData,
    stream: Stream,
    *,
    watcher: RunCallbacks,
    checkpoint: Checkpoint | None = None,
    keep: Callable[[Checkpoint], None] = lambda checkpoint: None,
) -> TrainingCoroutine[LearnedTask]:
    """The stints in which one task is learned as its stream says; keep, checkpoint: as in `learning`."""
    name = data.spec.name
    for note in data.notes:
        watcher.on_note(name, note)
    watcher.on_start(name)
    if checkpoint:
        watcher.on_note(name, f"goes on after epoch {len(checkpoint.training_state.curve) - 1}")
    return (
        yield from learn_task_coroutine(
            registry,
            prepare_task(backbone, data),
            seed=data.seed,
            measure_gain=stream.measure_gain,
            report=partial(watcher.on_step, name),
            checkpoint=checkpoint,
            keep=keep,
        )
    )


def _written(
    backbone: Backbone,
    registry: Registry,
    learned: LearnedTask,
    *,
    watcher: RunCallbacks,
    also: Callable[[UnitOfWork, str], None] = lambda unit, delta: None,
    moved: str | None = None,
) -> str:
    """Write a learned task down; the name of its delta."""
    delta = register_learned(registry, backbone, learned, also=also, moved=moved)
    stored = registry.delta(delta)
    if stored.version > 1:
        serves = "serves from now on" if stored.status == "champion" else f"does not serve: {stored.reason}"
        watcher.on_note(learned.task.data.spec.name, f"was learned before; {delta} {serves}")
    return delta
