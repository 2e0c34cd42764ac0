"""Report on a stream: the document of `continual report --json`, from the registry alone."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from math import inf
from typing import Any

from continual.reports.classes import class_report
from continual.reports.stream_measures import ContinualMeasures, continual_measures
from registry import Registry, ScoreMode, StoredDelta, StoredScore

Document = dict[str, Any]
MEASURES = {
    "acc": "ACC, mean score at the end",
    "forgetting": "forgetting",
    "bwt": "BWT, backward transfer",
    "fwt": "FWT, forward transfer",
    "fwt_random_init": "FWT over random initialisation",
    "la": "LA, mean score when learned",
    "aia": "AIA, mean over the stream",
    "routing_accuracy": "routing accuracy",
    "abstained": "share of rows abstained on",
}
LOSS = "loss"  # name of the loss among the metrics of a learning curve
BASELINE = "baseline"  # name of the score of answers without learning among the metrics beside a score
BASELINES = {"classification": "majority", "generation": "copy"}  # those answers, by kind
_DESCRIPTIONS = {"majority": "the most frequent label of train for every row", "copy": "every text copied"}
CONFUSION_THRESHOLD = 0.05  # share of a task's test rows routed to one other task that gives rise to advice
Matrix = list[list[float | None]]


class DeltaScores:
    """The scores of one delta on its test split."""

    def __init__(self, delta: StoredDelta, scores: Iterable[StoredScore]) -> None:
        self.metric = delta.metric
        self._scores = {(s.mode, s.metric, s.stream, s.step): s for s in scores}

    def alone(self, mode: ScoreMode) -> StoredScore | None:
        """Return the score that does not depend on a stream."""
        return self._scores.get((mode, self.metric, None, 0))

    def value(self, mode: ScoreMode) -> float | None:
        """Return the value of `alone`."""
        return _value(self.alone(mode))

    def calibration(self, metric: str) -> float | None:
        """Return the value of a metric that is measured beside the score."""
        return _value(self._scores.get(("calibration", metric, None, 0)))

    def routed(self, metric: str, *, stream: str, step: int) -> StoredScore | None:
        """Return the score after a position of a stream, routed among the tasks learned up to there."""
        return self._scores.get(("routed", metric, stream, step))


def stream_report(registry: Registry, stream: str) -> Document:
    """Return a stream's score matrices and measures, oracle (task known) and routed, as JSON.

    Later tasks never change a delta, so that its oracle score is measured once and holds in every later row. Scores of
    purged tasks are None, and the measures leave these tasks out; routed ones also those that are never routed to.

    Raises:
        NotFound: The stream was never started.
    """
    stored = registry.stream(stream)
    steps = [position.number for position in stored.positions if position.delta]
    deltas, test_scores = registry.learned(stream), _scores_by_delta(registry, stream, "test")
    scores = [DeltaScores(delta, test_scores[delta.name]) for delta in deltas]
    validation = _scores_by_delta(registry, stream, "validation")
    parents = defaultdict(list)
    for edge in registry.parents(stream):
        parents[edge["delta"]].append({"delta": edge["parent"], "weight": edge["weight"]})
    champions = registry.champions(stored.backbone)
    serving = {champion.task: champion.delta for champion in champions}
    unrouted = {champion.task for champion in champions if not champion.is_routed}
    remaining = [i for i, delta in enumerate(deltas) if delta.status != "purged"]
    routable = [i for i in remaining if deltas[i].task not in unrouted]
    routed = [
        [
            _value(task_scores.routed(task_scores.metric, stream=stream, step=step)) if i <= t else None
            for i, task_scores in enumerate(scores)
        ]
        for t, step in enumerate(steps)
    ]
    return {
        "stream": stream,
        "backbone": registry.backbone(stored.backbone).name,
        "tasks": [delta.task for delta in deltas],
        "oracle": {"matrix": _oracle_matrix(scores), **_oracle_measures([scores[i] for i in remaining])},
        "routed": {
            "matrix": routed,
            **asdict(_measures_if_complete([[routed[t][i] for i in routable] for t in routable])),
            **_routing(registry, scores, deltas, unrouted, stream=stream, steps=steps),
        },
        "unfinished": [
            {"task": position.task, "state": position.state, "error": position.error}
            for position in stored.positions
            if not position.delta
        ],
        "per_task": [
            delta_report(delta, task_scores, parents[delta.name])
            | _training(delta, validation[delta.name])
            | {"serving": serving.get(delta.task)}
            for delta, task_scores in zip(deltas, scores, strict=True)
        ],
    }


def _oracle_measures(scores: Sequence[DeltaScores]) -> Document:
    """Return the measures of a stream whose inputs name their task."""
    frozen, random_init = ([each.value(mode) for each in scores] for mode in ("frozen", "random_init"))
    return asdict(continual_measures(_oracle_matrix(scores), frozen, random_init=random_init))


def _scores_by_delta(registry: Registry, stream: str, split: str) -> Mapping[str, list[StoredScore]]:
    scores_of_delta = defaultdict(list)
    for score in registry.scores(learned_in=stream, split=split):
        scores_of_delta[score.delta].append(score)
    return scores_of_delta


def transfer_gain(task: Mapping[str, Any]) -> float | None:
    """Return a task's transfer gain: warm score less scratch score, on the same rows and budget.

    Args:
        task: An entry of the report's `per_task`.

    Returns:
        The gain; None where scratch was not trained.
    """
    return None if task["scratch_score"] is None else task["score"] - task["scratch_score"]


def serving_note(task: Mapping[str, Any]) -> str | None:
    """Return a sentence where another version than the measured one serves a task, or none; else None.

    Args:
        task: An entry of the report's `per_task`.
    """
    if task["serving"] == task["delta"] or task["score"] is None:
        return None
    return f"{task['serving'] or 'no version'} serves {task['task']} now; this report measures {task['delta']}"


def _oracle_matrix(scores: Sequence[DeltaScores]) -> Matrix:
    """Return R[t, i], with each task's score before training just above the diagonal."""

    def entry(t: int, i: int) -> float | None:
        if i <= t:
            return scores[i].value("oracle")
        return scores[i].value("neighbour") if i == t + 1 else None

    return [[entry(t, i) for i in range(len(scores))] for t in range(len(scores))]


def _measures_if_complete(matrix: Matrix) -> ContinualMeasures:
    """Return the measures, all None where a run stopped before scoring the stream after a task."""
    complete = all(value is not None for t, row in enumerate(matrix) for value in row[: t + 1])
    return continual_measures(matrix) if complete else continual_measures([])


def _routing(
    registry: Registry,
    scores: list[DeltaScores],
    deltas: Sequence[StoredDelta],
    unrouted: Collection[str],
    *,
    stream: str,
    steps: Sequence[int],
) -> Document:
    """Return routing accuracy, abstention and confusions after the last task, without purged and unrouted ones."""
    remaining = [
        task_scores
        for task_scores, delta in zip(scores, deltas, strict=True)
        if delta.status != "purged" and delta.task not in unrouted
    ]
    if not remaining:
        return {"routing_accuracy": None, "abstained": None, "confused": []}
    return {
        "routing_accuracy": _over_rows("routing_accuracy", remaining, stream=stream, step=steps[-1]),
        "abstained": _over_rows("abstained", remaining, stream=stream, step=steps[-1]),
        "confused": _confused(registry, scores, deltas, stream=stream, step=steps[-1]),
    }


def _over_rows(metric: str, scores: list[DeltaScores], *, stream: str, step: int) -> float | None:
    """Return a share over all tasks' test rows at a step; None where a task was not scored there."""
    routed = [task_scores.routed(metric, stream=stream, step=step) for task_scores in scores]
    measured = [score for score in routed if score]
    if len(measured) < len(routed):
        return None
    return sum(score.value * score.rows for score in measured) / sum(score.rows for score in measured)


def _confused(
    registry: Registry, scores: list[DeltaScores], deltas: Sequence[StoredDelta], *, stream: str, step: int
) -> list[Document]:
    """Return which other task each task's test rows were routed to, the largest share first.

    `share` is of the task's test rows; `advice` says what to do about two tasks that are confused often.
    """
    accuracy = {
        delta.name: task_scores.routed("routing_accuracy", stream=stream, step=step)
        for delta, task_scores in zip(deltas, scores, strict=True)
    }
    tasks = {delta.name: delta.task for delta in deltas}
    pairs = registry.confusions(stream, step=step)
    shares = {(p.delta, p.routed_to): p.rows / score.rows for p in pairs if (score := accuracy[p.delta])}
    confused: list[Document] = [
        {
            "task": tasks[p.delta],
            "routed_to": tasks[p.routed_to],
            "rows": p.rows,
            "share": shares[p.delta, p.routed_to],
            "advice": _advice(
                tasks[p.delta],
                tasks[p.routed_to],
                share=shares[p.delta, p.routed_to],
                reverse_share=shares.get((p.routed_to, p.delta), 0.0),
            ),
        }
        for p in pairs
        if (p.delta, p.routed_to) in shares
    ]
    return sorted(confused, key=lambda pair: -pair["share"])


def _advice(task: str, target: str, *, share: float, reverse_share: float) -> str | None:
    """Return advice on `task`, a share of whose rows is routed to `target`, and the reverse share back."""
    if min(share, reverse_share) >= CONFUSION_THRESHOLD:  # advice once per pair of tasks
        if (share, task) < (reverse_share, target):
            return None
        return f"{task} and {target} are taken for each other: learn them as one task, or name the task of their inputs"
    if share >= CONFUSION_THRESHOLD:
        return f"inputs of {task} look like those of {target}: name the task of these inputs, or tell the tasks apart"
    return None


def delta_report(delta: StoredDelta, scores: DeltaScores, parents: list[Document]) -> Document:
    """Return how a delta was learned and how it scores on its test rows: an entry of the report's `per_task`.

    Args:
        delta: The delta.
        scores: Its scores on the test split.
        parents: The deltas that it came from, with their weights.
    """
    oracle = scores.alone("oracle")
    return {
        "task": delta.task,
        "method": delta.method,
        "delta": delta.name,
        "parameters": delta.parameters,
        "share": delta.share,
        "bytes": delta.bytes,
        "score": _value(oracle),
        "score_low": oracle.low if oracle else None,
        "score_high": oracle.high if oracle else None,
        "test_rows": oracle.rows if oracle else None,
        "ece": scores.calibration("ece"),
        "perplexity": scores.calibration("perplexity"),
        **baseline_fields(delta.kind, scores.calibration(BASELINE)),
        "frozen_score": scores.value("frozen"),
        "random_init_score": scores.value("random_init"),
        "scratch_score": _value(oracle) if delta.warm_start == "scratch" else scores.value("scratch"),
        "warm_start": delta.warm_start,
        "parents": parents,
        "warnings": list(delta.data.warnings) if delta.data else [],
        **class_report(delta),
        "seconds": delta.seconds,
        "examples_per_second": delta.examples_per_second,
    }


def _training(delta: StoredDelta, scores: Sequence[StoredScore]) -> Document:
    """Return the score on the validation rows, and which epoch it was of how many; None where it is not known."""
    curve = {score.step: score.value for score in scores if score.mode == "curve"}
    losses = {score.step: score.value for score in scores if score.metric == LOSS}
    alone = next((score for score in scores if score.mode == "oracle" and score.metric == delta.metric), None)
    return {
        "validation_score": _value(alone),
        "validation_low": alone.low if alone else None,
        "validation_high": alone.high if alone else None,
        "validation_rows": alone.rows if alone else None,
        "best_epoch": max(sorted(curve), key=lambda epoch: (curve[epoch], -losses.get(epoch, inf)), default=None),
        "epochs": max(curve, default=None),
    }


def kept_start(task: Mapping[str, Any]) -> str | None:
    """Return a sentence where the start of a task stayed better than every epoch of its training, else None.

    Args:
        task: An entry of the report's `per_task`, or its fields about validation rows and epochs alone.
    """
    if task["best_epoch"] != 0 or not task["epochs"] or task["validation_score"] is None:
        return None
    interval = ""
    if task["validation_low"] is not None:
        interval = f", 95 % interval {task['validation_low']:.3f} to {task['validation_high']:.3f}"
    return (
        f"training did not improve on the start: epoch 0 of {task['epochs']} is kept, validation score "
        f"{task['validation_score']:.3f}{interval}, {task['validation_rows']} rows"
    )


def baseline_fields(kind: str, score: float | None) -> Document:
    """Return the fields of `per_task` about answers without learning.

    Args:
        kind: The kind of the task.
        score: Their score on the test rows; None where it is not known.
    """
    return {"baseline_score": score, "baseline": None if score is None else BASELINES.get(kind)}


def below_baseline(task: Mapping[str, Any]) -> str | None:
    """Return a sentence where a task scores below answers that take no learning, else None.

    Args:
        task: An entry of the report's `per_task`.
    """
    if task["score"] is None or task["baseline_score"] is None or task["score"] >= task["baseline_score"]:
        return None
    answers = _DESCRIPTIONS.get(task["baseline"], "an answer without learning")
    return (
        f"test score {task['score']:.3f} is below {task['baseline_score']:.3f}, that of {answers} "
        f"({task['test_rows']} rows)"
    )


def _value(score: StoredScore | None) -> float | None:
    return score.value if score else None
