"""Metrics of classifications: accuracy, F1, Matthews correlation, ROC area and expected calibration error."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sk

from continual.metrics.catalog import label_obstacle
from continual.metrics.subsets import Metric, RowIndices, SubsetScorer, metric_of_arrays
from tasks.errors import InputError

CALIBRATION_BINS = 15  # Guo et al. (2017)
CHANCE_AUROC = 0.5


def _macro_f1(truth: NDArray[Any], answers: NDArray[Any]) -> float:
    """The mean F1 of the labels that occur among the targets or the answers."""
    return float(sk.f1_score(truth, answers, average="macro", zero_division=0.0))


def _binary_f1(truth: Sequence[str], answers: Sequence[str], *, labels: Sequence[str]) -> SubsetScorer:
    """2 TP / (2 TP + FP + FN) of the second label; 0 where it is neither a target nor an answer."""
    if reason := label_obstacle("f1", labels, kind="classification"):
        raise InputError(reason)
    expected, answered = (np.array([label == labels[1] for label in side]) for side in (truth, answers))

    def score(rows: RowIndices) -> float:
        count = int(expected[rows].sum() + answered[rows].sum())
        return 2 * int((expected[rows] & answered[rows]).sum()) / count if count else 0.0

    return score


def _auroc(
    truth: Sequence[str], answers: Sequence[str], *, labels: Sequence[str], probabilities: NDArray[np.float64]
) -> SubsetScorer:
    """The area under the ROC curve of the second of two labels; of more labels the mean of each against the rest.

        AUROC = Σ_{i positive, j negative} ([p_i > p_j] + ½ [p_i = p_j]) / (number of such pairs)

    Hanley and McNeil (1982); Hand and Till (2001). A label that all rows have, or none, is left out of the mean, and
    without any other the area is that of chance. Probabilities are sorted once for all resamples.
    """
    count, columns = len(truth), np.arange(len(labels)) if len(labels) > 2 else np.array([1])
    index = {label: i for i, label in enumerate(labels)}
    is_positive = np.array([index.get(label, -1) for label in truth])[:, None] == columns
    values = np.asarray(probabilities)[:, columns]
    order = values.argsort(axis=0)
    is_negative = ~np.take_along_axis(is_positive, order, axis=0)
    rows, column = np.nonzero(is_positive)  # the positive row of each pair
    first, last = (stats.rankdata(values, method=method, axis=0)[rows, column].astype(int) for method in ("min", "max"))

    def score(chosen: RowIndices) -> float:
        times = np.bincount(chosen, minlength=count)
        negatives = np.zeros((count + 1, len(columns)))  # among the k least probable rows
        np.cumsum(times[order] * is_negative, axis=0, out=negatives[1:])
        beaten = (negatives[first - 1, column] + negatives[last, column]) / 2
        wins, positives = (
            np.bincount(column, weights=times[rows] * each, minlength=len(columns)) for each in (beaten, 1.0)
        )
        pairs = positives * (len(chosen) - positives)
        return float(np.mean(wins[pairs > 0] / pairs[pairs > 0])) if pairs.any() else CHANCE_AUROC

    return score


def _ece(truth: Sequence[str], answers: Sequence[str], *, probabilities: NDArray[np.float64]) -> SubsetScorer:
    """The expected calibration error, of the answers' probabilities in M bins of equal width; lower is better.

        ECE = Σ_m |B_m| / N · |accuracy(B_m) − mean probability(B_m)|     B_m: probability in ((m − 1) / M, m / M]

    Naeini et al. (2015), "Obtaining Well Calibrated Probabilities Using Bayesian Binning"; Guo et al. (2017), "On
    Calibration of Modern Neural Networks" (arXiv:1706.04599).
    """
    confidence = np.asarray(probabilities).max(axis=1)
    bins = np.digitize(confidence, np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS, right=True)
    gaps = np.array([right == answer for right, answer in zip(truth, answers, strict=True)]) - confidence
    return lambda rows: float(np.abs(np.bincount(bins[rows], weights=gaps[rows])).sum()) / len(rows)


METRICS: Mapping[str, Metric] = {
    "accuracy": metric_of_arrays(sk.accuracy_score),
    "macro_f1": metric_of_arrays(_macro_f1),
    "mcc": metric_of_arrays(sk.matthews_corrcoef),
    "f1": _binary_f1,
    "auroc": _auroc,
    "ece": _ece,
}
