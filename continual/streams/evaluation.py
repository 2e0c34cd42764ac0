"""Compute routed scores position by position; stop at the first position that is not learned yet."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

from continual.learning.learn import LearnedTask
from continual.routing.moments import AccumulatedMoments
from continual.streams.routed_scores import EvaluatedTask, add_missing_routed_scores, evaluate_learned, evaluate_stored
from continual.streams.stream_run import StreamRun
from registry import StoredPosition


class StreamEvaluator:
    """Evaluates one stream in one process, and reports every learned delta to the callbacks once."""

    def __init__(self, run: StreamRun) -> None:
        self._run = run
        self._evaluated_tasks: dict[str, Callable[[], EvaluatedTask]] = {}  # by delta
        self._moments = AccumulatedMoments()
        self._evaluated_steps: dict[int, list[str]] = {}  # by step, the deltas it was evaluated with
        self._announced: set[str] = set()  # deltas reported to the callbacks

    def add_learned(self, learned: Mapping[str, LearnedTask]) -> None:
        """Keep tasks learned in this process, by their deltas; others are read from the registry."""
        for delta, learned_task in learned.items():
            self._evaluated_tasks[delta] = cache(partial(evaluate_learned, learned_task))

    def evaluate_available(self) -> None:
        """Add the routed scores that can be computed now, and report deltas that any process learned."""
        self._run.retry_on_disconnect(self._evaluate_and_announce)

    def _evaluate_and_announce(self) -> None:
        while not self._evaluate_in_order(self._run.measurable_positions()):
            pass
        for position in self._run.positions():
            if position.delta and position.delta not in self._announced:
                self._announced.add(position.delta)
                self._run.callbacks.on_learned(position.task, position.delta)

    def _evaluate_in_order(self, positions: Sequence[StoredPosition]) -> bool:
        """Evaluate up to the first position that is not learned; False where the stream changed meanwhile."""
        run, evaluated_tasks, unrouted = self._run, dict[str, Callable[[], EvaluatedTask]](), set[str]()
        for position in positions:
            step = position.number
            if position.state in ("waiting", "held"):
                break
            if position.delta:
                load_evaluated_task = partial(
                    evaluate_stored, run.backbone, run.registry, position.delta, run.loaded[step]
                )
                if run.loaded[step].spec.route is False:
                    unrouted.add(position.delta)
                evaluated_tasks[position.delta] = self._evaluated_tasks.setdefault(
                    position.delta, cache(load_evaluated_task)
                )
                if self._evaluated_steps.get(step) != [*evaluated_tasks]:
                    if not add_missing_routed_scores(
                        run.registry,
                        evaluated_tasks,
                        stream=run.stream.name,
                        step=step,
                        last=position is positions[-1],
                        unrouted=unrouted,
                        totals=self._moments,
                    ):
                        return False
                    self._evaluated_steps[step] = [*evaluated_tasks]
        return True
