"""Metrics of answers, with 95 % intervals: fractions, higher is better, except the expected calibration error.

Correlations and R² can be negative. A metric takes the targets and the answers, row by row, and returns a function from
row indices, some perhaps several times, to the score of those rows: per-row work is done once for all bootstrap
samples. A metric that needs more than targets and answers declares it by keyword-only parameters (`INPUTS`):

    labels          the C labels of the task, sorted
    probabilities   the probability of each label [N, C], float64
    sources         the N texts that were answered

Shapes: N rows, C labels.
"""

from continual.metrics.catalog import CALIBRATION_METRICS, INPUTS, label_obstacle, metrics_of, required_inputs
from continual.metrics.scores import (
    NO_INPUTS,
    ScoreWithInterval,
    metric_score,
    proportion_with_interval,
    score_with_interval,
    wilson_interval,
)
from continual.metrics.subsets import Metric, RowIndices, SubsetScorer

__all__ = [
    "CALIBRATION_METRICS",
    "INPUTS",
    "NO_INPUTS",
    "Metric",
    "RowIndices",
    "ScoreWithInterval",
    "SubsetScorer",
    "label_obstacle",
    "metric_score",
    "metrics_of",
    "proportion_with_interval",
    "required_inputs",
    "score_with_interval",
    "wilson_interval",
]
