"""Score a stream's tasks with the router choosing the task of each input."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, load_delta
from continual.features.random_features import FrozenFeatures
from continual.inference.opinions import DeltaQuery, opinion_from_outputs, query_delta
from continual.kinds import Answer, ForwardContext, Kind, PreparedRows
from continual.kinds.scoring import misrouted, score_answers_with_interval
from continual.learning.learn import LearnedTask
from continual.learning.prepared import PreparedTask, prepare_task
from continual.learning.record import deserialize_outputs
from continual.metrics import proportion_with_interval
from continual.routing import Opinion, RoutingStatistics, build_router, choose_tasks
from continual.routing.moments import AccumulatedMoments
from registry import Registry, Score
from registry.errors import BlobError
from tasks import TaskData, Text

log = logging.getLogger(__name__)
RoutingCounts = Mapping[tuple[str, str], int]  # number of test rows by their delta and the delta they were routed to
QueryDelta = Callable[[Sequence[Text]], Opinion[Answer]]
T = TypeVar("T")


@dataclass(frozen=True)
class EvaluatedTask:
    """A learned task's test rows, their ground truth, and its own delta's predictions for them.

    Attributes:
        metric: The name of the task's metric.
        kind: The kind of the task.
        routing: The statistics that routers are built from.
        texts: The texts of the N test rows.
        frozen_test_features: The frozen features of the test rows.
        rows: The prepared test rows, with the correct answers.
        own_opinion: The answers of the task's own delta and how well the rows fit it, N.
        misrouted_answers: For each row an answer that scores as wrong, N.
        query: Evaluates the task's delta on other texts.
        opinion_cache: Excess log-probability and fit of single rows under other deltas, by delta and row.
    """

    metric: str
    kind: Kind[Any]
    routing: RoutingStatistics
    texts: tuple[Text, ...]
    frozen_test_features: FrozenFeatures
    rows: PreparedRows
    own_opinion: Opinion[Answer]
    misrouted_answers: Sequence[Answer]
    query: QueryDelta
    opinion_cache: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)

    def opinion_of(self, delta: str, other_task: "EvaluatedTask", rows: Sequence[int]) -> Opinion[None]:
        """Return the log-probability and fit of `rows` under another task's delta, cached per row.

        Args:
            delta: The name of the other delta.
            other_task: The evaluated task of that delta.
            rows: Indices of test rows of this task.

        Returns:
            Tensors of len(rows) values; the answers are None.
        """
        missing = [row for row in rows if (delta, row) not in self.opinion_cache]
        if missing:
            opinion = other_task.query([self.texts[row] for row in missing])
            values_per_row = zip(opinion.excess_log_prob.tolist(), opinion.fit.tolist(), strict=True)
            self.opinion_cache.update(
                {(delta, row): values for row, values in zip(missing, values_per_row, strict=True)}
            )
        log_prob, fit = torch.tensor([self.opinion_cache[delta, row] for row in rows]).T
        return Opinion([None] * len(rows), log_prob, fit)


def evaluate_learned(learned: LearnedTask) -> EvaluatedTask:
    """Return the evaluation data of a task learned in this process."""
    return _evaluated_task(
        learned.task, learned.trained.delta, learned.routing, learned.frozen_test_features, learned.opinion
    )


def evaluate_stored(backbone: Backbone, registry: Registry, delta: str, data: TaskData) -> EvaluatedTask:
    """Rebuild the evaluation data of a task learned earlier.

    Its predictions and statistics are read from the registry; its frozen features are computed again.

    Args:
        backbone: The frozen backbone.
        registry: The registry.
        delta: The name of the task's delta.
        data: The task's rows.
    """
    stored, blobs = registry.delta(delta), registry.blobs
    delta_values = load_delta(blobs.get(stored.values))
    task = prepare_task(backbone, data).with_kind_of(delta_values)
    routing = _stored_statistics(registry, delta) or _compute_statistics(task, delta_values)
    context = ForwardContext(task.backbone, delta_values, task.test)
    try:
        outputs = deserialize_outputs(blobs.get(stored.predictions)) if stored.predictions else None
    except BlobError as error:
        log.warning("%s answers its test rows again: %s", delta, error)
        outputs = None
    if outputs is None:
        outputs = task.kind.outputs(context, delta_values.head)
    opinion = opinion_from_outputs(task.kind, context, outputs, evidence=routing.evidence)
    return _evaluated_task(task, delta_values, routing, ForwardContext(task.backbone, None, task.test).frozen, opinion)


def _stored_statistics(registry: Registry, delta: str) -> RoutingStatistics | None:
    digest = registry.signature(delta).routing
    try:
        return RoutingStatistics.from_bytes(registry.blobs.get(digest)) if digest else None
    except BlobError as error:
        log.warning("the routing statistics of %s are taken again: %s", delta, error)
        return None


def _compute_statistics(task: PreparedTask, delta: Delta) -> RoutingStatistics:
    """Compute the statistics of a task that an older release learned and stored without them."""
    train, held_out, _ = task.frozen_views
    return task.routing_statistics(delta, train=train, held_out=held_out)


def _evaluated_task(
    task: PreparedTask,
    delta: Delta,
    routing: RoutingStatistics,
    frozen_test_features: FrozenFeatures,
    opinion: Opinion[Answer],
) -> EvaluatedTask:
    max_length = task.budget.max_length
    return EvaluatedTask(
        task.data.spec.metric,
        task.kind,
        routing,
        task.data.test.texts,
        frozen_test_features,
        task.test,
        opinion,
        misrouted(task.kind, task.test),
        lambda texts: query_delta(task.backbone, delta, DeltaQuery(texts, max_length, routing.evidence)),
    )


def add_missing_routed_scores(
    registry: Registry,
    tasks_by_delta: Mapping[str, Callable[[], EvaluatedTask]],
    *,
    stream: str,
    step: int,
    last: bool,
    totals: AccumulatedMoments,
    unrouted: Collection[str] = (),
) -> bool:
    """Compute and store the routed scores of one step of a stream, unless all of them are stored.

    Args:
        registry: The registry.
        tasks_by_delta: The tasks learned up to this step, by delta; each is loaded when it is called.
        stream: The name of the stream.
        step: The position up to which the stream is learned.
        last: The step is the stream's last one, where abstentions are counted too.
        totals: Moments accumulated over earlier steps.
        unrouted: Deltas whose tasks the router never chooses; they have no routed scores.

    Returns:
        False where `tasks_by_delta` is out of date: another controller has learned a task meanwhile.
    """
    stored = {score.delta for score in registry.scores(stream=stream, mode="routed", step=step)}
    if stored >= (routed := tasks_by_delta.keys() - set(unrouted)):
        return True
    loaded = {delta: load() for delta, load in tasks_by_delta.items() if delta in routed}
    measured, counts = routed_scores(loaded, stream=stream, step=step, abstaining=last, totals=totals)
    scores = {delta: measured.get(delta, []) for delta in tasks_by_delta}
    return registry.write_with_retry(lambda unit: unit.add_routed_scores(stream, step, scores, confusions=counts))


def routed_scores(
    tasks_by_delta: Mapping[str, EvaluatedTask],
    *,
    stream: str,
    step: int,
    abstaining: bool = True,
    totals: AccumulatedMoments | None = None,
) -> tuple[dict[str, list[Score]], RoutingCounts]:
    """Score every delta's test rows with each row routed among all these tasks.

    A row that is routed to another task counts as a wrong answer, even where both tasks have a label of that name; the
    router is forced to choose.

    Args:
        tasks_by_delta: The tasks, by delta.
        stream: The name of the stream.
        step: The position up to which the stream is learned.
        abstaining: Also compute the share of rows for which the router would abstain.
        totals: Moments accumulated over earlier steps.

    Returns:
        The scores by delta, and the number of rows routed from each delta to each other one.
    """
    router = build_router({delta: task.routing for delta, task in tasks_by_delta.items()}, totals=totals)
    scores: dict[str, list[Score]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for delta, task in tasks_by_delta.items():
        routed = router.route(task.frozen_test_features)
        decision = choose_tasks(router, routed.log_p, partial(_opinions, tasks_by_delta, router.tasks, delta))
        chosen = [router.tasks[number] for number in decision.tasks.tolist()]
        counts.update((delta, destination) for destination in chosen if destination != delta)
        is_correct = [destination == delta for destination in chosen]
        answers = answers_after_routing(task.own_opinion.answers, task.misrouted_answers, is_correct)
        values = {
            task.metric: score_answers_with_interval(task.kind, task.metric, task.rows, answers),
            "routing_accuracy": proportion_with_interval(is_correct),
        }
        if abstaining:
            familiarity = routed.familiarity + decision.fit
            values["abstained"] = proportion_with_interval((familiarity < router.threshold()).tolist())
        scores[delta] = [
            Score(split="test", metric=metric, mode="routed", stream=stream, step=step, **asdict(measured))
            for metric, measured in values.items()
        ]
    return scores, counts


def answers_after_routing(
    own_answers: Sequence[T], wrong_answers: Sequence[T], routed_correctly: Sequence[bool]
) -> list[T]:
    """Return each row's own answer, or its wrong one where the router did not choose its task.

    Args:
        own_answers: The answers of the rows' own task.
        wrong_answers: Answers that score as wrong.
        routed_correctly: True for rows whose own task the router chose.
    """
    return [
        own_answer if is_own_task else wrong_answer
        for is_own_task, own_answer, wrong_answer in zip(routed_correctly, own_answers, wrong_answers, strict=True)
    ]


def _opinions(
    tasks_by_delta: Mapping[str, EvaluatedTask],
    deltas: Sequence[str],
    delta: str,
    rows_by_number: Mapping[int, list[int]],
) -> dict[int, Opinion[None]]:
    """Return the opinions of the numbered deltas on the given test rows of `delta`."""
    task = tasks_by_delta[delta]
    return {
        number: Opinion([None] * len(rows), task.own_opinion.excess_log_prob[rows], task.own_opinion.fit[rows])
        if deltas[number] == delta
        else task.opinion_of(deltas[number], tasks_by_delta[deltas[number]], rows)
        for number, rows in rows_by_number.items()
    }
