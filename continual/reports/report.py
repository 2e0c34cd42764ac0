"""What a stream came to, from the registry alone: the document of `continual report --json`."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from continual.reports.stream_measures import ContinualMeasures, continual_measures
from registry import Registry, ScoreMode, StoredDelta, StoredScore

Document = dict[str, Any]
MEASURES = {
    "acc": "ACC, mean score at the end",
    "forgetting": "forgetting",
    "bwt": "BWT, backward transfer",
    "fwt": "FWT, forward transfer",
    "la": "LA, mean score when learned",
    "aia": "AIA, mean over the stream",
    "routing_accuracy": "routing accuracy",
    "abstained": "share of rows abstained on",
}
CONFUSION_THRESHOLD = 0.05  # of a task's test rows that go to one other task: worth telling
Matrix = list[list[float | None]]


class _Scores:
    """The scores of one delta on its test split, by what they say."""

    def __init__(self, delta: StoredDelta, scores: Iterable[StoredScore]) -> None:
        self.metric = delta.metric
        self._test = {(s.mode, s.metric, s.stream, s.step): s for s in scores}

    def alone(self, mode: ScoreMode) -> StoredScore | None:
        """The score that no stream has to do with."""
        return self._test.get((mode, self.metric, None, 0))

    def value(self, mode: ScoreMode) -> float | None:
        found = self.alone(mode)
        return found.value if found else None

    def routed(self, metric: str, *, stream: str, step: int) -> StoredScore | None:
        """The score after a position of a stream, among the tasks learned up to there."""
        return self._test.get(("routed", metric, stream, step))


def stream_report(registry: Registry, stream: str) -> Document:
    """Score matrices and measures of a stream's learned tasks, oracle (task known) and routed (task unknown).

    A delta is never changed by a later task, so its oracle score is measured once and holds in every later row.
    Of a task that was purged the scores are None; the measures are of those that are left.
    Raises NotFound for a stream that was never begun.
    """
    begun = registry.stream(stream)
    steps = [position.number for position in begun.positions if position.delta]
    deltas, measured = registry.learned(stream), defaultdict(list)
    for score in registry.scores(learned_in=stream, split="test"):
        measured[score.delta].append(score)
    scores = [_Scores(delta, measured[delta.name]) for delta in deltas]
    parents = defaultdict(list)
    for edge in registry.parents(stream):
        parents[edge["delta"]].append({"delta": edge["parent"], "weight": edge["weight"]})
    kept = [i for i, delta in enumerate(deltas) if delta.status != "purged"]
    left = [scores[i] for i in kept]
    routed = [
        [_value(own.routed(own.metric, stream=stream, step=step)) if i <= t else None for i, own in enumerate(scores)]
        for t, step in enumerate(steps)
    ]
    return {
        "stream": stream,
        "backbone": registry.backbone(begun.backbone).name,
        "tasks": [delta.task for delta in deltas],
        "oracle": {
            "matrix": _oracle(scores),
            **asdict(continual_measures(_oracle(left), [own.value("frozen") for own in left])),
        },
        "routed": {
            "matrix": routed,
            **asdict(_measures_if_complete([[routed[t][i] for i in kept] for t in kept])),
            "routing_accuracy": _over_rows("routing_accuracy", left, stream=stream, step=steps[-1]) if left else None,
            "abstained": _over_rows("abstained", left, stream=stream, step=steps[-1]) if left else None,
            "confused": _confused(registry, scores, deltas, stream=stream, step=steps[-1]) if left else [],
        },
        "unfinished": [
            {"task": position.task, "state": position.state, "error": position.error}
            for position in begun.positions
            if not position.delta
        ],
        "per_task": [_per_task(delta, own, parents[delta.name]) for delta, own in zip(deltas, scores, strict=True)],
    }


def transfer_gain(task: Mapping[str, Any]) -> float | None:
    """The transfer gain of a task of the document: warm less scratch, of the same rows and budget."""
    return None if task["scratch_score"] is None else task["score"] - task["scratch_score"]


def _oracle(scores: list[_Scores]) -> Matrix:
    """Below and on the diagonal each task's own score, just above it the score before its training."""

    def entry(t: int, i: int) -> float | None:
        if i <= t:
            return scores[i].value("oracle")
        return scores[i].value("neighbour") if i == t + 1 else None

    return [[entry(t, i) for i in range(len(scores))] for t in range(len(scores))]


def _measures_if_complete(matrix: Matrix) -> ContinualMeasures:
    """Measures, all None where a run was stopped between learning a task and measuring the stream after it."""
    complete = all(value is not None for t, row in enumerate(matrix) for value in row[: t + 1])
    return continual_measures(matrix) if complete else continual_measures([])


def _over_rows(metric: str, scores: list[_Scores], *, stream: str, step: int) -> float | None:
    """A share of the test rows of each task, after the last one was learned, as a share of all test rows."""
    found = [own.routed(metric, stream=stream, step=step) for own in scores]
    known = [score for score in found if score]
    if len(known) < len(found):
        return None
    return sum(score.value * score.rows for score in known) / sum(score.rows for score in known)


def _confused(
    registry: Registry, scores: list[_Scores], deltas: Sequence[StoredDelta], *, stream: str, step: int
) -> list[Document]:
    """Which tasks' test rows went to which other task after the last was learned, the largest share first.

    share: of the task's test rows · advice: what to do about two tasks that are taken for each other often.
    """
    measured = {
        delta.name: own.routed("routing_accuracy", stream=stream, step=step)
        for delta, own in zip(deltas, scores, strict=True)
    }
    tasks = {delta.name: delta.task for delta in deltas}
    pairs = registry.confusions(stream, step=step)
    shares = {(p.delta, p.routed_to): p.rows / found.rows for p in pairs if (found := measured[p.delta])}
    confused: list[Document] = [
        {
            "task": tasks[p.delta],
            "routed_to": tasks[p.routed_to],
            "rows": p.rows,
            "share": shares[p.delta, p.routed_to],
            "advice": _advice(
                tasks[p.delta],
                tasks[p.routed_to],
                there=shares[p.delta, p.routed_to],
                back=shares.get((p.routed_to, p.delta), 0.0),
            ),
        }
        for p in pairs
        if (p.delta, p.routed_to) in shares
    ]
    return sorted(confused, key=lambda pair: -pair["share"])


def _advice(task: str, other: str, *, there: float, back: float) -> str | None:
    if min(there, back) >= CONFUSION_THRESHOLD:  # said once of the two
        if (there, task) < (back, other):
            return None
        return f"{task} and {other} are taken for each other: learn them as one task, or name the task of their inputs"
    if there >= CONFUSION_THRESHOLD:
        return f"inputs of {task} look like those of {other}: name the task of these inputs, or tell the tasks apart"
    return None


def _per_task(delta: StoredDelta, scores: _Scores, parents: list[Document]) -> Document:
    own = scores.alone("oracle")
    return {
        "task": delta.task,
        "method": delta.method,
        "delta": delta.name,
        "parameters": delta.parameters,
        "share": delta.share,
        "bytes": delta.bytes,
        "score": _value(own),
        "score_low": own.low if own else None,
        "score_high": own.high if own else None,
        "test_rows": own.rows if own else None,
        "frozen_score": scores.value("frozen"),
        "scratch_score": _value(own) if delta.warm_start == "scratch" else scores.value("scratch"),
        "warm_start": delta.warm_start,
        "parents": parents,
        "seconds": delta.seconds,
        "examples_per_second": delta.examples_per_second,
    }


def _value(score: StoredScore | None) -> float | None:
    return score.value if score else None
