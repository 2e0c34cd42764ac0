"""Metrics of answers, with 95 % intervals: fractions, and higher is better.

The metrics measured beside a score (`SECONDARY_METRICS`) are the exception: lower is better, and a perplexity is no
fraction. Correlations and R² can be negative. A metric takes the targets and the answers, row by row, and returns a
function from row indices, some perhaps several times, to the score of those rows: per-row work is done once for all
bootstrap samples. A metric that needs more than targets and answers declares it by keyword-only parameters (`INPUTS`):

    labels          the C labels of the task, sorted
    probabilities   the probability of each label [N, C], float64
    sources         the N texts that were answered
    target_log_probabilities, target_lengths
                    of each target [N], in nats, and its number of tokens

Shapes: N rows, C labels.
"""

from continual.metrics.catalog import INPUTS, SECONDARY_METRICS, label_obstacle, metrics_of, required_inputs
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
    "INPUTS",
    "NO_INPUTS",
    "SECONDARY_METRICS",
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
