"""The answer to one row: a label, its probability, and those of all labels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class LabelDistribution(NamedTuple):
    """The probabilities of the labels for one row.

    Attributes:
        labels: The C labels.
        probabilities: Their probabilities [C], float32.
    """

    labels: tuple[str, ...]
    probabilities: NDArray[np.float32]


@dataclass(frozen=True)
class Answer:
    """The answer to one row.

    Attributes:
        label: The answer, a text or a number.
        score: Its probability; None for a kind without probabilities.
        distribution: The probabilities of all labels; None for a kind without labels.
    """

    label: str | float
    score: float | None
    distribution: LabelDistribution | None = field(default=None, compare=False, repr=False)


def answer_labels(answers: Sequence[Answer]) -> list[Any]:
    """Return the labels of answers, as the metrics take them."""
    return [answer.label for answer in answers]
