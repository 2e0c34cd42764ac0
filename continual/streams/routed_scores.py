"""How a stream's tasks fare when nobody says which task an input belongs to."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, load_delta
from continual.features.random_features import FrozenFeatures
from continual.inference.opinions import DeltaQuery, opinion_from_outputs, query_delta
from continual.kinds import Answer, ForwardContext, answer_labels
from continual.learning.learn import LearnedTask
from continual.learning.prepared import PreparedTask, prepare_task
from continual.learning.record import deserialize_outputs
from continual.metrics import proportion_with_interval, score_with_interval
from continual.routing import Opinion, RoutingStatistics, build_router, choose_tasks
from continual.routing.totals import AccumulatedMoments
from registry import Registry, Score
from registry.errors import BlobError
from tasks import TaskData, Text

log = logging.getLogger(__name__)
RoutingCounts = Mapping[tuple[str, str], int]  # how many test rows of a delta went to another
QueryDelta = Callable[[Sequence[Text]], Opinion[Answer]]


@dataclass(frozen=True)
class EvaluatedTask:
    """A learned task's test rows, what is right, and what its own delta says of them.

    tested: the rows through the frozen backbone · wrong: what is worth nothing as an answer · ask: what its delta says
    of other texts · heard: what other deltas said of single rows, by delta and row, asked once.
    """

    metric: str
    kind: str
    routing: RoutingStatistics
    texts: tuple[Text, ...]
    frozen_test_features: FrozenFeatures
    truth: Sequence[Any]
    own_opinion: Opinion[Answer]
    misrouted_answers: Sequence[Any]
    query: QueryDelta
    opinion_cache: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)

    def opinion_of(self, delta: str, other: "EvaluatedTask", rows: Sequence[int]) -> Opinion[None]:
        """What the delta of another task says of these rows, but for its answers."""
        new = [row for row in rows if (delta, row) not in self.opinion_cache]
        if new:
            said = other.query([self.texts[row] for row in new])
            pairs = zip(said.excess_log_prob.tolist(), said.fit.tolist(), strict=True)
            self.opinion_cache.update({(delta, row): pair for row, pair in zip(new, pairs, strict=True)})
        surely, fit = torch.tensor([self.opinion_cache[delta, row] for row in rows]).T
        return Opinion([None] * len(rows), surely, fit)


def evaluate_learned(learned: LearnedTask) -> EvaluatedTask:
    """What routing needs of a task that was just learned."""
    return _examined(
        learned.task, learned.trained.delta, learned.routing, learned.frozen_test_features, learned.opinion
    )


def evaluate_stored(backbone: Backbone, registry: Registry, delta: str, data: TaskData) -> EvaluatedTask:
    """The same of a task learned before: its answers and statistics from the registry, its features taken again."""
    task, stored, blobs = prepare_task(backbone, data), registry.delta(delta), registry.blobs
    learned = load_delta(blobs.get(stored.values))
    routing = _stored_statistics(registry, delta) or _statistics(task, learned)
    told = ForwardContext(task.backbone, learned, task.test)
    try:
        outputs = deserialize_outputs(blobs.get(stored.predictions)) if stored.predictions else None
    except BlobError as error:
        log.warning("%s answers its test rows again: %s", delta, error)
        outputs = None
    if outputs is None:
        outputs = task.kind.outputs(told, learned.head)
    own = opinion_from_outputs(task.kind, told, outputs, evidence=routing.evidence)
    return _examined(task, learned, routing, ForwardContext(task.backbone, None, task.test).frozen, own)


def _stored_statistics(registry: Registry, delta: str) -> RoutingStatistics | None:
    digest = registry.signature(delta).routing
    try:
        return RoutingStatistics.from_bytes(registry.blobs.get(digest)) if digest else None
    except BlobError as error:
        log.warning("the routing statistics of %s are taken again: %s", delta, error)
        return None


def _statistics(task: PreparedTask, delta: Delta) -> RoutingStatistics:
    """Those of a task that an older release learned."""
    rows, held_out, _ = task.frozen_views
    return task.routing_statistics(delta, train=rows, held_out=held_out)


def _examined(
    task: PreparedTask, delta: Delta, routing: RoutingStatistics, tested: FrozenFeatures, own: Opinion[Answer]
) -> EvaluatedTask:
    length = task.budget.max_length
    return EvaluatedTask(
        task.data.spec.metric,
        task.kind.metric_kind,
        routing,
        task.data.test.texts,
        tested,
        task.test.truth,
        own,
        task.kind.misrouted_answers(task.test.truth),
        lambda texts: query_delta(task.backbone, delta, DeltaQuery(texts, length, routing.evidence)),
    )


def add_missing_routed_scores(
    registry: Registry,
    examined: Mapping[str, Callable[[], EvaluatedTask]],
    *,
    stream: str,
    step: int,
    last: bool,
    totals: AccumulatedMoments,
) -> bool:
    """Measure the tasks learned up to position `step` of a stream, by their deltas, unless the registry has it all.

    last: whether it is the stream's last position, where abstentions are counted too · totals: of earlier positions.
    False where these are not all any more: another controller has learned one meanwhile.
    """
    stored = {score.delta for score in registry.scores(stream=stream, mode="routed", step=step)}
    if stored >= examined.keys():
        return True
    looked = {delta: look() for delta, look in examined.items()}
    found, sent = routed_scores(looked, stream=stream, step=step, abstaining=last, totals=totals)
    return registry.write_with_retry(lambda unit: unit.add_routed_scores(stream, step, found, sent=sent))


def routed_scores(
    examined: Mapping[str, EvaluatedTask],
    *,
    stream: str,
    step: int,
    abstaining: bool = True,
    totals: AccumulatedMoments | None = None,
) -> tuple[dict[str, list[Score]], RoutingCounts]:
    """Score and routing accuracy of every delta's test rows, routed among the tasks of all of them.

    A row that goes to another task counts as a wrong answer, even where both tasks have a label of that name; the
    router is forced to choose. abstaining: count as well how often it would not.
    """
    router = build_router({delta: task.routing for delta, task in examined.items()}, totals=totals)
    scores: dict[str, list[Score]] = {}
    sent: Counter[tuple[str, str]] = Counter()
    for delta, task in examined.items():
        decision = choose_tasks(
            router, router.log_p(task.frozen_test_features), partial(_ask, examined, router.tasks, delta)
        )
        chosen = [router.tasks[number] for number in decision.tasks.tolist()]
        sent.update((delta, other) for other in chosen if other != delta)
        right = [other == delta for other in chosen]
        answers = answers_after_routing(answer_labels(task.own_opinion.answers), task.misrouted_answers, right)
        found = {
            task.metric: score_with_interval(task.metric, task.truth, answers, kind=task.kind),
            "routing_accuracy": proportion_with_interval(right),
        }
        if abstaining:
            known = router.familiarity(task.frozen_test_features) + decision.fit
            found["abstained"] = proportion_with_interval((known < router.threshold()).tolist())
        scores[delta] = [
            Score(split="test", metric=metric, mode="routed", stream=stream, step=step, **asdict(measured))
            for metric, measured in found.items()
        ]
    return scores, sent


def answers_after_routing(own: Sequence[Any], wrong: Sequence[Any], right: Sequence[bool]) -> list[Any]:
    """The answers that rows get: their own task's, or a wrong one where the router did not choose that task."""
    return [mine if ours else other for ours, mine, other in zip(right, own, wrong, strict=True)]


def _ask(
    examined: Mapping[str, EvaluatedTask], deltas: Sequence[str], delta: str, looked: Mapping[int, list[int]]
) -> dict[int, Opinion[None]]:
    """What the deltas of these numbers say of test rows of `delta`."""
    task = examined[delta]
    return {
        number: Opinion([None] * len(rows), task.own_opinion.excess_log_prob[rows], task.own_opinion.fit[rows])
        if deltas[number] == delta
        else task.opinion_of(deltas[number], examined[deltas[number]], rows)
        for number, rows in looked.items()
    }
