"""The scores of a strategy after a step, with the task known and with the task chosen by the router."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from continual.deltas import Delta
from continual.evaluate import metric_score
from continual.kinds import ForwardContext, Outputs, answer_labels
from continual.learn import PreparedTask
from continual.routed import answers_after_routing
from continual.strategies.ground import FrozenBaseline
from continual.strategies.strategy import StrategyContext, StrategyStep
from registry import ScoreMode, StepScore


def test_outputs(given: StrategyContext, step: StrategyStep) -> Mapping[int, Outputs]:
    """What is said of every task's test rows after a step; what cannot have changed is not asked again."""
    return {**step.state.outputs, **{i: _outputs(given, i, delta) for i, delta in step.changed_deltas.items()}}


def step_scores(
    given: StrategyContext, ground: FrozenBaseline, step: StrategyStep, outputs: Mapping[int, Outputs], *, number: int
) -> Iterator[StepScore]:
    """Of every task up to `number`, and of the last one what it had before its training: in frozen features (`frozen`)
    and in those of the body that earlier tasks left (`neighbour`), with the head in closed form."""
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
