"""Score a strategy's steps, with a router and baseline scores from the frozen backbone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from continual.deltas import Delta, Head
from continual.experiments.strategies.strategy import StrategyContext, StrategyStep
from continual.features.random_features import FrozenFeatures
from continual.kinds import Answer, ForwardContext, Outputs
from continual.kinds.scoring import misrouted, score_answers
from continual.learning.prepared import PreparedTask
from continual.reports.comparison import BEST_EPOCH
from continual.routing import RoutingStatistics, build_router
from continual.routing.moments import AccumulatedMoments
from continual.streams.routed_scores import answers_after_routing
from registry import ScoreMode, StepScore


@dataclass(frozen=True)
class FrozenTask:
    """A task in frozen features.

    Attributes:
        routing: The statistics that a router needs of the task.
        test_features: The features of the test rows.
        score: The test score of the closed-form head.
        random_init_score: The test score of a head of random values.
    """

    routing: RoutingStatistics
    test_features: FrozenFeatures
    score: float
    random_init_score: float


class FrozenBaseline:
    """Frozen features, baseline scores and routers of the tasks, computed on first use.

    A comparison that continues an earlier one thus computes only what it still needs.
    """

    def __init__(self, tasks: Sequence[PreparedTask]) -> None:
        self._tasks, self._totals = tasks, AccumulatedMoments()
        self._frozen_tasks: dict[int, FrozenTask] = {}
        self._routed_correctly: dict[int, tuple[list[bool], ...]] = {}

    def task(self, number: int) -> FrozenTask:
        """Return a task in frozen features, by its index."""
        if number not in self._frozen_tasks:
            self._frozen_tasks[number] = _frozen_task(self._tasks[number])
        return self._frozen_tasks[number]

    def routed_correctly(self, step: int) -> tuple[list[bool], ...]:
        """Return for each test row of the tasks 0…`step` whether the router of these tasks chooses its task.

        The router uses frozen features alone: the second look of `continual.routing.decision` needs deltas that were
        learned separately.
        """
        if step not in self._routed_correctly:
            tasks = [self.task(number) for number in range(step + 1)]
            router = build_router({str(i): task.routing for i, task in enumerate(tasks)}, totals=self._totals)
            choices = [router.log_p(task.test_features).argmax(dim=1) for task in tasks]
            columns = [router.tasks.index(str(number)) for number in range(step + 1)]
            self._routed_correctly[step] = tuple(
                (chosen == column).tolist() for chosen, column in zip(choices, columns, strict=True)
            )
        return self._routed_correctly[step]


def _frozen_task(task: PreparedTask) -> FrozenTask:
    train, held_out, test = task.frozen_views
    routing = task.routing_statistics(None, train=train, held_out=held_out)
    closed_form = task.kind.closed_form_start(train, held_out).head

    def score(head: Head | None) -> float:
        answers = task.kind.answers(task.backbone, task.kind.outputs(test, head), task.test)
        return score_answers(task.kind, task.data.spec.metric, task.test, answers)

    value, random_head = score(closed_form), task.random_head()
    return FrozenTask(routing, test.frozen, value, score(random_head) if random_head else value)


def outputs_of_test_rows(context: StrategyContext, step: StrategyStep) -> Mapping[int, Outputs]:
    """Return the outputs for every task's test rows; only changed deltas are evaluated anew."""
    return {**step.state.outputs, **{i: _outputs(context, i, delta) for i, delta in step.changed_deltas.items()}}


def step_scores(
    context: StrategyContext,
    baseline: FrozenBaseline,
    step: StrategyStep,
    outputs: Mapping[int, Outputs],
    *,
    number: int,
) -> Iterator[StepScore]:
    """Yield the scores of the tasks 0…`number` after a step, and the best epoch and baseline scores of task `number`.

    The baselines are the closed-form head in frozen features (mode `frozen`) and in the features of the shared delta
    before the task's training (mode `neighbour`), and a head of random values in frozen features (`random_init`).

    Args:
        context: The tasks.
        baseline: The tasks in frozen features.
        step: The step.
        outputs: The outputs for the test rows of each task, by its index, as `outputs_of_test_rows` returns them.
        number: The index of the task that the step learned.
    """
    for i, correct in enumerate(baseline.routed_correctly(number)):
        task, answers = context.tasks[i], _answers(context, i, outputs[i])
        routed = answers_after_routing(answers, misrouted(task.kind, task.test), correct)
        yield _score(task, "oracle", answers)
        yield _score(task, "routed", routed)
        accuracy = sum(correct) / len(correct)
        name = task.data.spec.name
        yield StepScore(task=name, mode="routed", metric="routing_accuracy", value=accuracy, rows=len(correct))
    last = context.tasks[number]
    frozen = baseline.task(number)
    name, metric, rows = last.data.spec.name, last.data.spec.metric, len(last.data.test)
    yield StepScore(task=name, mode="frozen", metric=metric, value=frozen.score, rows=rows)
    yield StepScore(task=name, mode="random_init", metric=metric, value=frozen.random_init_score, rows=rows)
    if last.budget.epochs:
        epoch, validation_rows = float(step.best_epoch), len(last.data.validation)
        yield StepScore(task=name, mode="curve", metric=BEST_EPOCH, value=epoch, rows=validation_rows)
    if step.before:
        yield _score(last, "neighbour", _answers(context, number, _outputs(context, number, step.before)))


def _outputs(context: StrategyContext, number: int, delta: Delta) -> Outputs:
    task = context.tasks[number]
    return task.kind.outputs(ForwardContext(context.backbone, delta, task.test), delta.head)


def _answers(context: StrategyContext, number: int, outputs: Outputs) -> list[Answer]:
    task = context.tasks[number]
    return task.kind.answers(context.backbone, outputs, task.test)


def _score(task: PreparedTask, mode: ScoreMode, answers: Sequence[Answer]) -> StepScore:
    spec, value = task.data.spec, score_answers(task.kind, task.data.spec.metric, task.test, answers)
    return StepScore(task=spec.name, mode=mode, metric=spec.metric, value=value, rows=len(answers))
