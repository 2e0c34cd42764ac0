"""Scores of answers with their 95 % intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from continual.metrics.catalog import metrics_of, required_inputs
from continual.metrics.subsets import SubsetScorer
from tasks.errors import InputError

NO_INPUTS: Mapping[str, Any] = {}
PROPORTION_METRICS = (
    "accuracy",
    "exact_match",
    "normalized_match",
    "numeric_match",
)  # shares of right rows, whose interval is Wilson's
BOOTSTRAP_SAMPLES = 200
Z_975 = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclass(frozen=True)
class ScoreWithInterval:
    """A score with its 95 % interval.

    Attributes:
        value: The score.
        rows: Number of rows that it is measured on.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    value: float
    rows: int
    low: float
    high: float


def metric_score(
    metric: str,
    truth: Sequence[Any],
    answers: Sequence[Any],
    *,
    kind: str = "classification",
    inputs: Mapping[str, Any] = NO_INPUTS,
) -> float:
    """Score answers by a metric.

    Args:
        metric: Name of the metric.
        truth: N targets.
        answers: N answers.
        kind: The kind of task that the metric belongs to, a kind's `metric_kind`.
        inputs: What the metric needs besides, by the names of `INPUTS`; more is ignored.

    Returns:
        A fraction; a correlation from −1 to 1, an R² up to 1.

    Raises:
        InputError: An input that the metric needs is missing, or the labels are not what it is defined for.
    """
    return _scorer(metric, truth, answers, kind, inputs)(np.arange(len(truth)))


def score_with_interval(
    metric: str,
    truth: Sequence[Any],
    answers: Sequence[Any],
    *,
    kind: str = "classification",
    inputs: Mapping[str, Any] = NO_INPUTS,
) -> ScoreWithInterval:
    """Score answers by a metric, with a 95 % interval; arguments and errors are those of `metric_score`.

    The interval of a share of right rows is Wilson's (1927), of any other metric the bootstrap's percentiles (Efron
    1979), with a fixed seed.

    >>> score_with_interval("accuracy", [0, 1, 1, 0], [0, 1, 1, 1])
    ScoreWithInterval(value=0.75, rows=4, low=0.30064184258240184, high=0.9544127391902995)
    """
    scorer, count = _scorer(metric, truth, answers, kind, inputs), len(truth)
    value = scorer(np.arange(count))
    low, high = wilson_interval(value, count) if metric in PROPORTION_METRICS else _bootstrap_interval(scorer, count)
    return ScoreWithInterval(value, count, low, high)


def _scorer(
    metric: str, truth: Sequence[Any], answers: Sequence[Any], kind: str, inputs: Mapping[str, Any]
) -> SubsetScorer:
    needed = required_inputs(metric, kind=kind)
    if missing := [name for name in needed if inputs.get(name) is None]:
        raise InputError(
            f"metric {metric!r} of {kind} needs {', '.join(needed)}, and {', '.join(missing)} were not given; "
            "pass them as `inputs`, or use another metric"
        )
    return metrics_of(kind)[metric](truth, answers, **{name: inputs[name] for name in needed})


def proportion_with_interval(outcomes: Sequence[bool]) -> ScoreWithInterval:
    """Return the share of true outcomes, with its 95 % interval."""
    share = sum(outcomes) / len(outcomes)
    return ScoreWithInterval(share, len(outcomes), *wilson_interval(share, len(outcomes)))


def wilson_interval(share: float, rows: int) -> tuple[float, float]:
    """Return Wilson's (1927) 95 % interval of a share of `rows` rows."""
    centre = (share + Z_975**2 / (2 * rows)) / (1 + Z_975**2 / rows)
    half = Z_975 / (1 + Z_975**2 / rows) * math.sqrt(share * (1 - share) / rows + Z_975**2 / (4 * rows**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _bootstrap_interval(scorer: SubsetScorer, count: int) -> tuple[float, float]:
    generator = np.random.default_rng(0)
    samples = [scorer(generator.integers(count, size=count)) for _ in range(BOOTSTRAP_SAMPLES)]
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)
