"""What a stream came to: measures of its score matrix.

R[t, i] is the score on task i after learning task t, b[i] the score before any learning, T the number of tasks:

    ACC         mean over i of R[T, i]
    BWT         mean over i < T of R[T, i] − R[i, i]
    FWT         mean over i ≥ 2 of R[i−1, i] − b[i]
    forgetting  mean over i < T of max over i ≤ l < T of R[l, i], less R[T, i]; negative where tasks got better
    LA          mean over i of R[i, i]
    AIA         mean over t of the mean over i ≤ t of R[t, i]

Lopez-Paz and Ranzato (2017), "Gradient Episodic Memory" (BWT, FWT); Chaudhry et al. (2018), "Riemannian Walk"
(forgetting). The mean of nothing is None.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ScoreMatrix = Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class ContinualMeasures:
    """The measures of one matrix, fractions like its scores."""

    acc: float | None
    bwt: float | None
    fwt: float | None
    forgetting: float | None
    la: float | None
    aia: float | None


def continual_measures(matrix: ScoreMatrix, before: Sequence[float | None] | None = None) -> ContinualMeasures:
    """Measures of a T × T matrix whose entries on and below the diagonal are numbers; entries above may be None.

    `before` holds b; without it FWT is None. Raises ValueError for a matrix that is not square or lacks a number, and
    for `before` of another length.

    >>> measures([[0.9, 0.4], [0.7, 0.8]], [0.5, 0.3]).bwt
    -0.20000000000000007
    """
    size = len(matrix)
    learned = [[_number(row, t, i) for i in range(t + 1)] for t, row in enumerate(matrix) if len(row) == size]
    if len(learned) != size:
        raise ValueError(
            f"a score matrix has as many columns as rows; got {size} rows of {[len(row) for row in matrix]}"
        )
    if before is not None and len(before) != size:
        raise ValueError(f"there is one score before learning per task; got {len(before)} for {size} tasks")
    last = learned[-1] if learned else []
    own = [row[-1] for row in learned]
    return ContinualMeasures(
        acc=mean(last),
        bwt=mean(end - start for end, start in zip(last[:-1], own[:-1], strict=True)),
        fwt=None if before is None else mean(_transfer(matrix, before)),
        forgetting=mean(max(row[i] for row in learned[i:-1]) - last[i] for i in range(size - 1)),
        la=mean(own),
        aia=mean(sum(row) / len(row) for row in learned),
    )


def mean(values: Iterable[float]) -> float | None:
    """The mean, or None of nothing."""
    found = list(values)
    return sum(found) / len(found) if found else None


def _number(row: Sequence[float | None], t: int, i: int) -> float:
    value = row[i]
    if value is None:
        raise ValueError(f"the score on task {i + 1} after task {t + 1} is missing; it is needed, since i ≤ t")
    return value


def _transfer(matrix: ScoreMatrix, before: Sequence[float | None]) -> Iterable[float]:
    for i in range(1, len(matrix)):
        ahead, start = matrix[i - 1][i], before[i]
        if ahead is not None and start is not None:
            yield ahead - start
