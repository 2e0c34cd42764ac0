"""Count how the rows of a classification were answered: by label, by pair of labels, and by probability.

Per-class scores, the confusion matrix and the reliability of the probabilities follow from these counts, so that
neither rows nor their labels need to be stored.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from continual.kinds.answer import Answer, answer_labels
from continual.kinds.kind import Kind, PreparedRows
from registry import AnswerCounts

RELIABILITY_BINS = 10
MAX_CONFUSED_PAIRS = 2000  # of different labels; the rows of rarer pairs are in the counts of each label alone


def count_answers(kind: Kind[Any], rows: PreparedRows, answers: Sequence[Answer]) -> AnswerCounts | None:
    """Count the answers to N rows of a classification; None for other kinds.

    A row whose answer has probability p is in bin ⌈10 p⌉, as in the expected calibration error.

    Args:
        kind: The kind of the task.
        rows: The rows, with targets.
        answers: Their answers, N.
    """
    if kind.metric_kind != "classification":
        return None
    labels = kind.registered_labels
    truth, answered = (_indices(values, labels) for values in (rows.truth, answer_labels(answers)))
    right = truth == answered
    scores = np.array([answer.score or 0.0 for answer in answers])
    bins = np.digitize(scores, np.arange(1, RELIABILITY_BINS) / RELIABILITY_BINS, right=True)
    pairs = Counter(zip(truth[~right].tolist(), answered[~right].tolist(), strict=True))
    return AnswerCounts(
        support=_counts(truth, len(labels)),
        answered=_counts(answered, len(labels)),
        correct=_counts(truth[right], len(labels)),
        confused=tuple((*pair, count) for pair, count in pairs.most_common(MAX_CONFUSED_PAIRS)),
        bins=tuple(
            (int((bins == i).sum()), float(scores[bins == i].sum()), int(right[bins == i].sum()))
            for i in range(RELIABILITY_BINS)
        ),
    )


def _indices(values: Sequence[str], labels: Sequence[str]) -> NDArray[np.int64]:
    index = {label: i for i, label in enumerate(labels)}
    return np.array([index[value] for value in values], dtype=np.int64)


def _counts(indices: NDArray[np.int64], count: int) -> tuple[int, ...]:
    return tuple(np.bincount(indices, minlength=count).tolist())
