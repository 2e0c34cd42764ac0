"""Metrics of regressions: correlations and the coefficient of determination."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from continual.metrics.subsets import Metric, metric_of_arrays


def _correlation(correlate: Callable[..., Any]) -> Metric:
    """A correlation of scipy; 0 where all targets or all answers are equal."""

    def score(truth: NDArray[Any], answers: NDArray[Any]) -> float:
        is_constant = np.ptp(truth) == 0 or np.ptp(answers) == 0
        return 0.0 if is_constant else float(np.nan_to_num(correlate(truth, answers).statistic))

    return metric_of_arrays(score)


def _r2(truth: NDArray[Any], answers: NDArray[Any]) -> float:
    """1 − mean squared error / variance of the targets; 0 where all targets are equal."""
    variance = float(np.var(truth))
    return 1.0 - float(np.mean((truth - answers) ** 2)) / variance if variance else 0.0


METRICS: Mapping[str, Metric] = {
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
    "r2": metric_of_arrays(_r2),
}
