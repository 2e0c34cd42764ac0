"""A stream is measured in its own order, as far as nothing before is still to be learned, by whomever."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

from continual.learning.learn import LearnedTask
from continual.routing.totals import AccumulatedMoments
from continual.streams.job import StreamRun
from continual.streams.routed_scores import EvaluatedTask, add_missing_routed_scores, evaluate_learned, evaluate_stored
from registry import StoredPosition


class StreamEvaluator:
    """One process's measuring of one stream, and the telling of what anybody has learned."""

    def __init__(self, job: StreamRun) -> None:
        self._job = job
        self._examined: dict[str, Callable[[], EvaluatedTask]] = {}  # by delta
        self._totals = AccumulatedMoments()
        self._measured: dict[int, list[str]] = {}  # by step, the deltas that it was measured with
        self._told: set[str] = set()  # the deltas that the watcher knows of

    def add_learned(self, learned: Mapping[str, LearnedTask]) -> None:
        """Have at hand what was learned in this process, by its delta; all else is read from the registry."""
        for delta, found in learned.items():
            self._examined[delta] = cache(partial(evaluate_learned, found))

    def evaluate_available(self) -> None:
        """Measure what can be measured, and tell of what anybody has learned."""
        self._job.retry_on_disconnect(self._look_around)

    def _look_around(self) -> None:
        while not self._measure(self._job.measurable_positions()):
            pass
        for position in self._job.positions():
            if position.delta and position.delta not in self._told:
                self._told.add(position.delta)
                self._job.watcher.on_learned(position.task, position.delta)

    def _measure(self, positions: Sequence[StoredPosition]) -> bool:
        """Measure the stream in its order, up to what is still to be learned; False where it has changed meanwhile."""
        job, examined = self._job, dict[str, Callable[[], EvaluatedTask]]()
        for position in positions:
            step = position.number
            if position.state in ("waiting", "held"):
                break
            if position.delta:
                stored = partial(evaluate_stored, job.backbone, job.registry, position.delta, job.loaded[step])
                examined[position.delta] = self._examined.setdefault(position.delta, cache(stored))
                if self._measured.get(step) != [*examined]:
                    if not add_missing_routed_scores(
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
