"""How a stream's tasks fare when nobody says which task an input belongs to."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from continual.backbone import Backbone
from continual.deltas import Delta, load_delta
from continual.errors import BlobError
from continual.evaluate import measure, share
from continual.experts import Asked, opinion, opinion_of
from continual.frozen import Frozen
from continual.kinds import Answer, Seen, labels_of
from continual.learn import Learned, Task, ready
from continual.record import outputs_from_bytes
from continual.routing import Opinion, Statistics, build_router, decide
from continual.routing.totals import Totals
from registry import Registry, Score
from tasks import TaskData, Text

log = logging.getLogger(__name__)
Sent = Mapping[tuple[str, str], int]  # how many test rows of a delta went to another
Ask = Callable[[Sequence[Text]], Opinion[Answer]]


@dataclass(frozen=True)
class Examined:
    """A learned task's test rows, what is right, and what its own delta says of them.

    tested: the rows through the frozen backbone · wrong: what is worth nothing as an answer · ask: what its delta says
    of other texts · heard: what other deltas said of single rows, by delta and row, asked once.
    """

    metric: str
    kind: str
    routing: Statistics
    texts: tuple[Text, ...]
    tested: Frozen
    truth: Sequence[Any]
    own: Opinion[Answer]
    wrong: Sequence[Any]
    ask: Ask
    heard: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)

    def hears(self, delta: str, other: "Examined", rows: Sequence[int]) -> Opinion[None]:
        """What the delta of another task says of these rows, but for its answers."""
        new = [row for row in rows if (delta, row) not in self.heard]
        if new:
            said = other.ask([self.texts[row] for row in new])
            pairs = zip(said.surely.tolist(), said.fit.tolist(), strict=True)
            self.heard.update({(delta, row): pair for row, pair in zip(new, pairs, strict=True)})
        surely, fit = torch.tensor([self.heard[delta, row] for row in rows]).T
        return Opinion([None] * len(rows), surely, fit)


def examine(learned: Learned) -> Examined:
    """What routing needs of a task that was just learned."""
    return _examined(learned.task, learned.trained.delta, learned.routing, learned.tested, learned.opinion)


def examine_stored(backbone: Backbone, registry: Registry, delta: str, data: TaskData) -> Examined:
    """The same of a task learned before: its answers and statistics from the registry, its features taken again."""
    task, stored, blobs = ready(backbone, data), registry.delta(delta), registry.blobs
    learned = load_delta(blobs.get(stored.values))
    routing = _stored_statistics(registry, delta) or _statistics(task, learned)
    told = Seen(task.backbone, learned, task.test)
    try:
        outputs = outputs_from_bytes(blobs.get(stored.predictions)) if stored.predictions else None
    except BlobError as error:
        log.warning("%s answers its test rows again: %s", delta, error)
        outputs = None
    if outputs is None:
        outputs = task.kind.outputs(told, learned.head)
    own = opinion_of(task.kind, told, outputs, evidence=routing.evidence)
    return _examined(task, learned, routing, Seen(task.backbone, None, task.test).frozen, own)


def _stored_statistics(registry: Registry, delta: str) -> Statistics | None:
    digest = registry.signature(delta).routing
    try:
        return Statistics.from_bytes(registry.blobs.get(digest)) if digest else None
    except BlobError as error:
        log.warning("the routing statistics of %s are taken again: %s", delta, error)
        return None


def _statistics(task: Task, delta: Delta) -> Statistics:
    """Those of a task that an older release learned."""
    rows, held_out, _ = task.seen
    return task.routing(delta, train=rows, held_out=held_out)


def _examined(task: Task, delta: Delta, routing: Statistics, tested: Frozen, own: Opinion[Answer]) -> Examined:
    length = task.budget.max_length
    return Examined(
        task.data.spec.metric,
        task.kind.scored,
        routing,
        task.data.test.texts,
        tested,
        task.test.truth,
        own,
        task.kind.wrong(task.test.truth),
        lambda texts: opinion(task.backbone, delta, Asked(texts, length, routing.evidence)),
    )


def complete_routed_scores(
    registry: Registry,
    examined: Mapping[str, Callable[[], Examined]],
    *,
    stream: str,
    step: int,
    last: bool,
    totals: Totals,
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
    return registry.write(lambda unit: unit.add_routed(stream, step, found, sent=sent))


def routed_scores(
    examined: Mapping[str, Examined], *, stream: str, step: int, abstaining: bool = True, totals: Totals | None = None
) -> tuple[dict[str, list[Score]], Sent]:
    """Score and routing accuracy of every delta's test rows, routed among the tasks of all of them.

    A row that goes to another task counts as a wrong answer, even where both tasks have a label of that name; the
    router is forced to choose. abstaining: count as well how often it would not.
    """
    router = build_router({delta: task.routing for delta, task in examined.items()}, totals=totals)
    scores: dict[str, list[Score]] = {}
    sent: Counter[tuple[str, str]] = Counter()
    for delta, task in examined.items():
        decision = decide(router, router.log_p(task.tested), partial(_ask, examined, router.tasks, delta))
        chosen = [router.tasks[number] for number in decision.tasks.tolist()]
        sent.update((delta, other) for other in chosen if other != delta)
        right = [other == delta for other in chosen]
        answers = given_answers(labels_of(task.own.answers), task.wrong, right)
        found = {
            task.metric: measure(task.metric, task.truth, answers, kind=task.kind),
            "routing_accuracy": share(right),
        }
        if abstaining:
            known = router.known(task.tested) + decision.fit
            found["abstained"] = share((known < router.threshold()).tolist())
        scores[delta] = [
            Score(split="test", metric=metric, mode="routed", stream=stream, step=step, **asdict(measured))
            for metric, measured in found.items()
        ]
    return scores, sent


def given_answers(own: Sequence[Any], wrong: Sequence[Any], right: Sequence[bool]) -> list[Any]:
    """The answers that rows get: their own task's, or a wrong one where the router did not choose that task."""
    return [mine if ours else other for ours, mine, other in zip(right, own, wrong, strict=True)]


def _ask(
    examined: Mapping[str, Examined], deltas: Sequence[str], delta: str, looked: Mapping[int, list[int]]
) -> dict[int, Opinion[None]]:
    """What the deltas of these numbers say of test rows of `delta`."""
    task = examined[delta]
    return {
        number: Opinion([None] * len(rows), task.own.surely[rows], task.own.fit[rows])
        if deltas[number] == delta
        else task.hears(deltas[number], examined[deltas[number]], rows)
        for number, rows in looked.items()
    }
