"""The scores of a strategy after a step, with the task known and with the task chosen by the router."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from continual.deltas import Delta
from continual.evaluate import metric_score
from continual.kinds import Outputs, Seen, labels_of
from continual.learn import Task
from continual.routed import given_answers
from continual.strategies.ground import Ground
from continual.strategies.strategy import Given, Step
from registry import Mode, StepScore


def answered(given: Given, step: Step) -> Mapping[int, Outputs]:
    """What is said of every task's test rows after a step; what cannot have changed is not asked again."""
    return {**step.state.outputs, **{i: _outputs(given, i, delta) for i, delta in step.changed.items()}}


def scores_of(
    given: Given, ground: Ground, step: Step, outputs: Mapping[int, Outputs], *, number: int
) -> Iterator[StepScore]:
    """Of every task up to `number`, and of the last one what it had before its training: in frozen features (`frozen`)
    and in those of the body that earlier tasks left (`neighbour`), with the head in closed form."""
    for i, right in enumerate(ground.right(number)):
        task, own = given.tasks[i], _answers(given, i, outputs[i])
        yield _score(task, "oracle", own)
        yield _score(task, "routed", given_answers(own, task.kind.wrong(task.test.truth), right))
        accuracy = sum(right) / len(right)
        name = task.data.spec.name
        yield StepScore(task=name, mode="routed", metric="routing_accuracy", value=accuracy, rows=len(right))
    last = given.tasks[number]
    frozen = ground.known(number).frozen
    metric, rows = last.data.spec.metric, len(last.data.test)
    yield StepScore(task=last.data.spec.name, mode="frozen", metric=metric, value=frozen, rows=rows)
    if step.before:
        yield _score(last, "neighbour", _answers(given, number, _outputs(given, number, step.before)))


def _outputs(given: Given, number: int, delta: Delta) -> Outputs:
    task = given.tasks[number]
    return task.kind.outputs(Seen(given.backbone, delta, task.test), delta.head)


def _answers(given: Given, number: int, outputs: Outputs) -> list[Any]:
    task = given.tasks[number]
    return labels_of(task.kind.answers(given.backbone, outputs, task.test))


def _score(task: Task, mode: Mode, answers: Sequence[Any]) -> StepScore:
    spec, truth = task.data.spec, task.test.truth
    value = metric_score(spec.metric, truth, answers, kind=task.kind.scored)
    return StepScore(task=spec.name, mode=mode, metric=spec.metric, value=value, rows=len(truth))
