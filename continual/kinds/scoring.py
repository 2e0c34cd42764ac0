"""Score the answers to rows of a task by one of its kind's metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

from continual.kinds.answer import Answer, answer_labels
from continual.kinds.kind import ForwardContext, Kind, PreparedRows
from continual.metrics import (
    NO_INPUTS,
    SECONDARY_METRICS,
    ScoreWithInterval,
    metric_score,
    required_inputs,
    score_with_interval,
)


def score_answers(kind: Kind[Any], metric: str, rows: PreparedRows, answers: Sequence[Answer]) -> float:
    """Score the answers to N rows by a metric.

    Args:
        kind: The kind of the task.
        metric: Name of one of its metrics.
        rows: The rows, with targets.
        answers: Their answers, N.

    Returns:
        The score, as `continual.metrics.metric_score` returns it.

    Raises:
        InputError: The metric is not defined for the task's labels.
    """
    inputs = _metric_inputs(kind, metric, rows, answers)
    return metric_score(metric, rows.truth, answer_labels(answers), kind=kind.metric_kind, inputs=inputs)


def score_answers_with_interval(
    kind: Kind[Any], metric: str, rows: PreparedRows, answers: Sequence[Answer]
) -> ScoreWithInterval:
    """Score the answers to N rows, with a 95 % interval; arguments and errors are those of `score_answers`."""
    inputs = _metric_inputs(kind, metric, rows, answers)
    return score_with_interval(metric, rows.truth, answer_labels(answers), kind=kind.metric_kind, inputs=inputs)


def secondary_scores(context: ForwardContext[Any], kind: Kind[Any], answers: Sequence[Answer]) -> dict[str, float]:
    """Return what is measured beside the score of N rows, by metric.

    Args:
        context: The rows, with targets, through the delta.
        kind: The kind of the task.
        answers: Their answers, N.
    """
    if not (metrics := SECONDARY_METRICS.get(kind.metric_kind, ())):
        return {}
    rows = context.rows
    inputs = {**kind.metric_inputs(rows, answers), **kind.likelihood_inputs(context)}
    labels = answer_labels(answers)
    return {m: metric_score(m, rows.truth, labels, kind=kind.metric_kind, inputs=inputs) for m in metrics}


def misrouted(kind: Kind[Any], rows: PreparedRows) -> list[Answer]:
    """Return for each row an answer without value, by which a row routed to another task is scored."""
    return [Answer(label, None) for label in kind.misrouted_answers(rows.truth)]


def _metric_inputs(kind: Kind[Any], metric: str, rows: PreparedRows, answers: Sequence[Answer]) -> Mapping[str, Any]:
    """The inputs that the metric declares; computed only for one that declares any."""
    return kind.metric_inputs(rows, answers) if required_inputs(metric, kind=kind.metric_kind) else NO_INPUTS
