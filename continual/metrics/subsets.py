"""Metrics as functions of row indices, so that the rows of many bootstrap samples are scored at little cost."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RowIndices = NDArray[np.int64]
SubsetScorer = Callable[[RowIndices], float]  # from the indices of some rows to their score
Metric = Callable[..., SubsetScorer]  # from targets and answers, and the inputs that it declares


def metric_of_arrays(score: Callable[[NDArray[Any], NDArray[Any]], float]) -> Metric:
    """Return the metric that is a function of all targets and answers."""

    def metric(truth: Sequence[Any], answers: Sequence[Any]) -> SubsetScorer:
        truth_array, answer_array = _array(truth), _array(answers)
        return lambda rows: float(score(truth_array[rows], answer_array[rows]))

    return metric


def _array(values: Sequence[Any]) -> NDArray[Any]:
    return np.asarray(values, dtype=object if isinstance(values[0], str) else None)


def mean_of_rows(row_scores: Sequence[float]) -> SubsetScorer:
    """Return the mean of scores [N] that each row has by itself."""
    scores = np.asarray(row_scores, dtype=np.float64)
    return lambda rows: float(scores[rows].mean())


def best_reference(score: Callable[[str, str], float]) -> Metric:
    """Return the mean over rows of the best score against any of a row's reference answers."""
    return lambda truth, answers: mean_of_rows(
        [
            max(score(reference, answer) for reference in references)
            for references, answer in zip(truth, answers, strict=True)
        ]
    )
