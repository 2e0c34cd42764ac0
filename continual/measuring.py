"""A stream is measured in its own order, as far as nothing before is still to be learned, by whomever."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

from continual.job import Job
from continual.learn import Learned
from continual.routed import Examined, complete_routed_scores, examine, examine_stored
from continual.routing.totals import Totals
from registry import StoredPosition


class Measuring:
    """One process's measuring of one stream, and the telling of what anybody has learned."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._examined: dict[str, Callable[[], Examined]] = {}  # by delta
        self._totals = Totals()
        self._measured: dict[int, list[str]] = {}  # by step, the deltas that it was measured with
        self._told: set[str] = set()  # the deltas that the watcher knows of

    def keep(self, learned: Mapping[str, Learned]) -> None:
        """Have at hand what was learned in this process, by its delta; all else is read from the registry."""
        for delta, found in learned.items():
            self._examined[delta] = cache(partial(examine, found))

    def look_around(self) -> None:
        """Measure what can be measured, and tell of what anybody has learned."""
        self._job.again(self._look_around)

    def _look_around(self) -> None:
        while not self._measure(self._job.measurable()):
            pass
        for position in self._job.positions():
            if position.delta and position.delta not in self._told:
                self._told.add(position.delta)
                self._job.watcher.learned(position.task, position.delta)

    def _measure(self, positions: Sequence[StoredPosition]) -> bool:
        """Measure the stream in its order, up to what is still to be learned; False where it has changed meanwhile."""
        job, examined = self._job, dict[str, Callable[[], Examined]]()
        for position in positions:
            step = position.number
            if position.state in ("waiting", "held"):
                break
            if position.delta:
                stored = partial(examine_stored, job.backbone, job.registry, position.delta, job.loaded[step])
                examined[position.delta] = self._examined.setdefault(position.delta, cache(stored))
                if self._measured.get(step) != [*examined]:
                    if not complete_routed_scores(
                        job.registry,
                        examined,
                        stream=job.stream.name,
                        step=step,
                        last=position is positions[-1],
                        totals=self._totals,
                    ):
                        return False
                    self._measured[step] = [*examined]
        return True
