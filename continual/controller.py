"""The story of a stream: every task in order of arrival, each learned once, whatever happens in between.

The registry holds the state. A controller claims the next position that is free, learns its task, and registers task,
delta and scores in one unit of work; killed anywhere, it leaves the position to the next controller, which goes on from
its last checkpoint. The stream is measured in its own order, as far as nothing before is still to be learned.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

from continual.backbone import Backbone
from continual.checked import begin, check
from continual.errors import Disconnected, InputError
from continual.positions import Learning
from continual.routed import Examined, complete_routed_scores, examine, examine_stored
from continual.routing.totals import Totals
from continual.watcher import SILENT, Watcher
from registry import Registry, StoredPosition, claim_next, this_holder
from tasks import Stream, TaskData

log = logging.getLogger(__name__)
WAIT = 1.0  # seconds between looks at positions that other controllers hold
RETRIES = 1  # how often a task that failed is tried again


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
        self.learning = Learning(backbone, registry, stream, watcher, self.holder)
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
            numbers = [number, *self._beside(number)]
            for delta, found in self.learning.learn({number: self.loaded[number] for number in numbers}).items():
                self.examined[delta] = cache(partial(examine, found))

    def _beside(self, number: int) -> Iterator[int]:
        """Further positions that are free and that are learned together with this one."""
        for _ in range(self._joint(number) - 1):
            among = {other: most for other, most in self.most.items() if self._joint(other) > 1}
            further = claim_next(self.registry, self.stream.name, among=among, holder=self.holder)
            if further is None:
                return
            yield further

    def _joint(self, number: int) -> int:
        budget = self.loaded[number].spec.budget
        return budget.joint if budget else 1

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
