"""Positions of a stream that one process holds: their tasks are learned and written down, or let go.

Killed anywhere, a position is left to whoever claims it next, who goes on from its last checkpoint.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from continual.backbone import Backbone
from continual.checked import recipe
from continual.checkpoint import Checkpoint, Keeper
from continual.errors import ClaimLost, ContinualError
from continual.learn import Learned, learning, ready
from continual.record import record
from continual.stints import Stints, by_itself
from continual.together import train_together
from continual.watcher import SILENT, Watcher
from registry import Registry, Unit, held, release, shown
from tasks import Stream, TaskData

log = logging.getLogger(__name__)


def learn_one(
    backbone: Backbone, registry: Registry, data: TaskData, stream: Stream, *, watcher: Watcher = SILENT
) -> str:
    """Learn one task as its stream says and write it down; the name of its delta."""
    learned = by_itself(_learning_of(backbone, registry, data, stream, watcher=watcher), seed=data.seed)
    return _written(backbone, registry, learned, watcher=watcher)


@dataclass(frozen=True)
class Learning:
    """How the positions of a stream are learned here, and in whose name they are held.

    moved: by task, the delta of another backbone whose recipe and rows it is learned by, as in `record`.
    """

    backbone: Backbone
    registry: Registry
    stream: Stream
    watcher: Watcher
    holder: str
    moved: Mapping[str, str] = field(default_factory=dict)

    def learn(self, tasks: Mapping[int, TaskData]) -> dict[str, Learned]:
        """Learn the tasks of these positions, which `holder` holds, side by side; what was learned, by its delta.

        Each is written down when it is done. One that fails is marked so, with what went wrong; one that another
        has taken over meanwhile is left to it; stopped by hand, all that are not done wait again.
        """
        found: dict[str, Learned] = {}
        left = {str(number): number for number in tasks}
        with ExitStack() as holding:
            for number in tasks:
                holding.enter_context(held(self.registry, self.stream.name, number=number, holder=self.holder))
            try:
                begun = {name: self._begun(number, tasks[number]) for name, number in left.items()}
                for name, learned in train_together(begun, seed=next(iter(tasks.values())).seed):
                    number = left.pop(name)
                    if delta := self._done(number, tasks[number].spec.name, learned):
                        found[delta[0]] = delta[1]
            except BaseException:  # stopped by hand: the next run may go on at once
                for number in left.values():
                    release(self.registry, self.stream.name, number=number, holder=self.holder)
                raise
        return found

    def _begun(self, number: int, data: TaskData) -> Stints[Learned]:
        made_by = recipe(data)
        keeper = Keeper(self.registry, self.stream.name, number=number, holder=self.holder, recipe=made_by)
        return _learning_of(
            self.backbone,
            self.registry,
            data,
            self.stream,
            watcher=self.watcher,
            checkpoint=keeper.last(),
            keep=keeper,
        )

    def _done(self, number: int, name: str, found: Learned | Exception) -> tuple[str, Learned] | None:
        """Write down what came of a task; its delta, where there is one."""

        def also(unit: Unit, delta: str) -> None:
            unit.finish(self.stream.name, number, delta=delta, holder=self.holder)

        try:
            if isinstance(found, Exception):
                raise found
            delta = _written(
                self.backbone,
                self.registry,
                found,
                watcher=self.watcher,
                also=also,
                moved=self.moved.get(name),
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
        said = shown(f"{type(error).__name__}: {error}")

        def work(unit: Unit) -> None:
            unit.fail(self.stream.name, number, error=said, holder=self.holder)

        try:
            self.registry.write(work)
        except ClaimLost as lost:
            log.warning("task %s: %s (here it failed: %s)", name, lost, said)
        else:
            self.watcher.failed(name, said)


def _learning_of(
    backbone: Backbone,
    registry: Registry,
    data: TaskData,
    stream: Stream,
    *,
    watcher: Watcher,
    checkpoint: Checkpoint | None = None,
    keep: Callable[[Checkpoint], None] = lambda checkpoint: None,
) -> Stints[Learned]:
    """The stints in which one task is learned as its stream says; keep, checkpoint: as in `learning`."""
    name = data.spec.name
    for note in data.notes:
        watcher.noted(name, note)
    watcher.began(name)
    if checkpoint:
        watcher.noted(name, f"goes on after epoch {len(checkpoint.course.curve) - 1}")
    return (
        yield from learning(
            registry,
            ready(backbone, data),
            seed=data.seed,
            measure_gain=stream.measure_gain,
            report=partial(watcher.step, name),
            checkpoint=checkpoint,
            keep=keep,
        )
    )


def _written(
    backbone: Backbone,
    registry: Registry,
    learned: Learned,
    *,
    watcher: Watcher,
    also: Callable[[Unit, str], None] = lambda unit, delta: None,
    moved: str | None = None,
) -> str:
    """Write a learned task down; the name of its delta."""
    delta = record(registry, backbone, learned, also=also, moved=moved)
    stored = registry.delta(delta)
    if stored.version > 1:
        serves = "serves from now on" if stored.status == "champion" else f"does not serve: {stored.reason}"
        watcher.noted(learned.task.data.spec.name, f"was learned before; {delta} {serves}")
    return delta
