"""Score answers, with an interval that says how far the score can be trusted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from continual.metrics import METRICS, PROPORTION_METRICS, SubsetScorer

BOOTSTRAP_SAMPLES = 200
Z_975 = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclass(frozen=True)
class ScoreWithInterval:
    """A score, the number of rows it was measured on, and its 95 % interval."""

    value: float
    rows: int
    low: float
    high: float


def metric_score(metric: str, truth: Sequence[Any], answers: Sequence[Any], *, kind: str = "classification") -> float:
    """A kind's `metric` of the answers, a fraction (correlations: −1 to 1; R²: at most 1)."""
    return METRICS[kind][metric](truth, answers)(np.arange(len(truth)))


def score_with_interval(
    metric: str, truth: Sequence[Any], answers: Sequence[Any], *, kind: str = "classification"
) -> ScoreWithInterval:
    """`metric` with its 95 % interval: Wilson's (1927) for a share of rows, else the bootstrap's (Efron 1979).

    >>> measure("accuracy", [0, 1, 1, 0], [0, 1, 1, 1])
    Measured(value=0.75, rows=4, low=0.30064184258700566, high=0.9544127391902995)
    """
    of_rows, count = METRICS[kind][metric](truth, answers), len(truth)
    value = of_rows(np.arange(count))
    low, high = wilson_interval(value, count) if metric in PROPORTION_METRICS else _bootstrap(of_rows, count)
    return ScoreWithInterval(value, count, low, high)


def proportion_with_interval(held: Sequence[bool]) -> ScoreWithInterval:
    """The share of rows of which something holds, with its 95 % interval."""
    value = sum(held) / len(held)
    return ScoreWithInterval(value, len(held), *wilson_interval(value, len(held)))


def wilson_interval(found: float, rows: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share observed on so many rows."""
    centre = (found + Z_975**2 / (2 * rows)) / (1 + Z_975**2 / rows)
    half = Z_975 / (1 + Z_975**2 / rows) * math.sqrt(found * (1 - found) / rows + Z_975**2 / (4 * rows**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _bootstrap(of_rows: SubsetScorer, count: int) -> tuple[float, float]:
    draw = np.random.default_rng(0)
    values = [of_rows(draw.integers(count, size=count)) for _ in range(BOOTSTRAP_SAMPLES)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
