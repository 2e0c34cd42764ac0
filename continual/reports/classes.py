"""Per-class scores, confusions and reliability of one classification, from the counts stored with its delta."""

from collections.abc import Mapping
from typing import Any

from registry import AnswerCounts, StoredDelta

Document = dict[str, Any]
NO_CLASSES: Mapping[str, Any] = {"per_class": [], "confused_labels": [], "reliability": []}


def class_report(delta: StoredDelta) -> Document:
    """Return how a classification answered its test rows, as JSON; empty lists where that was not counted.

    Precision, recall and F1 of a label are 0 where they are not defined, as by scikit-learn's `zero_division=0`.

        precision = correct / answered     recall = correct / support     F1 = 2 correct / (answered + support)

    Returns:
        `per_class` with label, precision, recall, f1, support (test rows of the label) and correct (those that were
        answered with it); `confused_labels` with label, answered and rows, the most frequent pair first;
        `reliability` with the bounds of each bin of probability, its rows, mean probability and accuracy.
    """
    counts = delta.data and delta.data.answers
    if not counts:
        return dict(NO_CLASSES)
    return {
        "per_class": _per_class(counts, delta.labels),
        "confused_labels": [
            {"label": delta.labels[label], "answered": delta.labels[answer], "rows": rows}
            for label, answer, rows in counts.confused
        ],
        "reliability": _reliability(counts),
    }


def confusion_matrix(report: Mapping[str, Any]) -> list[list[int]]:
    """Return the C × C numbers of test rows, true labels (a row) by answers (a column), in the order of `per_class`.

    Args:
        report: What `class_report` returns.
    """
    index = {entry["label"]: i for i, entry in enumerate(report["per_class"])}
    matrix = [[0] * len(index) for _ in index]
    for i, entry in enumerate(report["per_class"]):
        matrix[i][i] = entry["correct"]
    for pair in report["confused_labels"]:
        matrix[index[pair["label"]]][index[pair["answered"]]] = pair["rows"]
    return matrix


def _per_class(counts: AnswerCounts, labels: tuple[str, ...]) -> list[Document]:
    return [
        {
            "label": label,
            "precision": _ratio(correct, answered),
            "recall": _ratio(correct, support),
            "f1": _ratio(2 * correct, answered + support),
            "support": support,
            "correct": correct,
        }
        for label, support, answered, correct in zip(
            labels, counts.support, counts.answered, counts.correct, strict=True
        )
    ]


def _reliability(counts: AnswerCounts) -> list[Document]:
    width = 1 / len(counts.bins)
    return [
        {
            "low": number * width,
            "high": (number + 1) * width,
            "rows": rows,
            "confidence": probabilities / rows if rows else None,
            "accuracy": correct / rows if rows else None,
        }
        for number, (rows, probabilities, correct) in enumerate(counts.bins)
    ]


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else 0.0
