"""What all strategies have in common: what the frozen backbone says of the tasks, and the router that it gives."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from continual.deltas import Delta
from continual.experiments.strategies.strategy import StrategyContext, StrategyStep
from continual.features.random_features import FrozenFeatures
from continual.kinds import ForwardContext, Outputs, answer_labels
from continual.learning.prepared import PreparedTask
from continual.metrics import metric_score
from continual.routing import RoutingStatistics, build_router
from continual.routing.totals import AccumulatedMoments
from continual.streams.routed_scores import answers_after_routing
from registry import ScoreMode, StepScore


@dataclass(frozen=True)
class FrozenTask:
    """A task in frozen features. tested: its test rows · frozen: the score of the head in closed form."""

    routing: RoutingStatistics
    tested: FrozenFeatures
    frozen: float


class FrozenBaseline:
    """Taken of each task when it is first asked for, so that a comparison that goes on takes what is still needed."""

    def __init__(self, tasks: Sequence[PreparedTask]) -> None:
        self._tasks, self._totals = tasks, AccumulatedMoments()
        self._known: dict[int, FrozenTask] = {}
        self._right: dict[int, tuple[list[bool], ...]] = {}

    def known(self, number: int) -> FrozenTask:
        """The task of that number."""
        if number not in self._known:
            self._known[number] = _known(self._tasks[number])
        return self._known[number]

    def routed_correctly(self, step: int) -> tuple[list[bool], ...]:
        """Which test rows of each task up to a step the router of these tasks sends to their own.

        By frozen features alone: the second look of `continual.routing.decision` asks deltas that were learned apart.
        """
        if step not in self._right:
            known = [self.known(number) for number in range(step + 1)]
            router = build_router({str(i): task.routing for i, task in enumerate(known)}, totals=self._totals)
            sent = [router.log_p(task.tested).argmax(dim=1) for task in known]
            own = [router.tasks.index(str(number)) for number in range(step + 1)]
            self._right[step] = tuple((rows == i).tolist() for rows, i in zip(sent, own, strict=True))
        return self._right[step]


def _known(task: PreparedTask) -> FrozenTask:
    rows, held_out, tested = task.frozen_views
    routing = task.routing_statistics(None, train=rows, held_out=held_out)
    outputs = task.kind.outputs(tested, task.kind.closed_form_start(rows, held_out).head)
    answers = answer_labels(task.kind.answers(task.backbone, outputs, task.test))
    score = metric_score(task.data.spec.metric, task.test.truth, answers, kind=task.kind.metric_kind)
    return FrozenTask(routing, tested.frozen, score)


def outputs_of_test_rows(given: StrategyContext, step: StrategyStep) -> Mapping[int, Outputs]:
    """What is said of every task's test rows after a step; what cannot have changed is not asked again."""
    return {**step.state.outputs, **{i: _outputs(given, i, delta) for i, delta in step.changed_deltas.items()}}


def step_scores(
    given: StrategyContext, ground: FrozenBaseline, step: StrategyStep, outputs: Mapping[int, Outputs], *, number: int
) -> Iterator[StepScore]:
    """Of every task up to `number`, and of the last one what it had before its training: in frozen features (`frozen`)
    and in those of the body that earlier tasks left (`neighbour`), with the head in closed form.
    """
    for i, right in enumerate(ground.routed_correctly(number)):
        task, own = given.tasks[i], _answers(given, i, outputs[i])
        yield _score(task, "oracle", own)
        yield _score(task, "routed", answers_after_routing(own, task.kind.misrouted_answers(task.test.truth), right))
        accuracy = sum(right) / len(right)
        name = task.data.spec.name
        yield StepScore(task=name, mode="routed", metric="routing_accuracy", value=accuracy, rows=len(right))
    last = given.tasks[number]
    frozen = ground.known(number).frozen
    metric, rows = last.data.spec.metric, len(last.data.test)
    yield StepScore(task=last.data.spec.name, mode="frozen", metric=metric, value=frozen, rows=rows)
    if step.before:
        yield _score(last, "neighbour", _answers(given, number, _outputs(given, number, step.before)))


def _outputs(given: StrategyContext, number: int, delta: Delta) -> Outputs:
    task = given.tasks[number]
    return task.kind.outputs(ForwardContext(given.backbone, delta, task.test), delta.head)


def _answers(given: StrategyContext, number: int, outputs: Outputs) -> list[Any]:
    task = given.tasks[number]
    return answer_labels(task.kind.answers(given.backbone, outputs, task.test))


def _score(task: PreparedTask, mode: ScoreMode, answers: Sequence[Any]) -> StepScore:
    spec, truth = task.data.spec, task.test.truth
    value = metric_score(spec.metric, truth, answers, kind=task.kind.metric_kind)
    return StepScore(task=spec.name, mode=mode, metric=spec.metric, value=value, rows=len(truth))
