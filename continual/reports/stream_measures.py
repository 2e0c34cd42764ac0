"""Measures of continual learning, computed from a stream's score matrix.

R[t, i] is the score on task i after learning task t, b[i] the score before any learning, T the number of tasks, all
counted from 1:

    ACC         mean_i R[T, i]
    BWT         mean_{i<T} (R[T, i] − R[i, i])
    FWT         mean_{i≥2} (R[i−1, i] − b[i])      with b[i], or with b̄[i] in its place
    forgetting  mean_{i<T} (max_{i≤l<T} R[l, i] − R[T, i])
    LA          mean_i R[i, i]
    AIA         mean_t ACC_t    with    ACC_t = mean_{i≤t} R[t, i]

An unlearned task has no head of its own. For FWT, R[i−1, i] is the score of a head fitted in closed form on task i's
train rows in the features of the best earlier delta, and b[i] the score of such a head in frozen features: the
difference is what earlier tasks add. b̄[i] is the score at random initialisation, as Lopez-Paz and Ranzato define it: of
a head of random values in frozen features. In their R[i−1, i] nothing is fitted on task i, so that it is lower.
Routed matrices have neither: the router cannot choose an unlearned task, so that their FWT is None.

The last row is not in the maximum of forgetting, so that it is negative where tasks improved. The mean of nothing is
None. Measures that need more than one matrix, the two of intransigence, are computed in `comparison`, and transfer
gain, warm less scratch on the same rows and budget, in `report`.

Lopez-Paz and Ranzato (2017), "Gradient Episodic Memory" (BWT, FWT); Chaudhry et al. (2018), "Riemannian Walk"
(forgetting).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

ScoreMatrix = Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class ContinualMeasures:
    """The measures of one score matrix, in the unit of its scores; None where there is nothing to average.

    Attributes:
        acc: Average accuracy after the last task.
        bwt: Backward transfer.
        fwt: Forward transfer.
        forgetting: Mean loss against the best earlier score.
        la: Learning accuracy, the mean score right after learning.
        aia: Average incremental accuracy.
        fwt_random_init: Forward transfer over random initialisation.
    """

    acc: float | None
    bwt: float | None
    fwt: float | None
    forgetting: float | None
    la: float | None
    aia: float | None
    fwt_random_init: float | None = None


def continual_measures(
    matrix: ScoreMatrix,
    before: Sequence[float | None] | None = None,
    *,
    random_init: Sequence[float | None] | None = None,
) -> ContinualMeasures:
    """Compute the measures of a score matrix.

    >>> continual_measures([[0.9, 0.4], [0.7, 0.8]], [0.5, 0.3]).bwt
    -0.20000000000000007

    Args:
        matrix: R, T × T; entries above the diagonal may be None, and only those just above it are used, for FWT.
        before: b, T scores; without it FWT is None. Tasks whose b[i] or R[i−1, i] is None are left out of FWT.
        random_init: b̄, T scores, for FWT over random initialisation, with the same rules.

    Returns:
        The measures.

    Raises:
        ValueError: The matrix is not square or lacks a number on or below the diagonal, or `before` or `random_init`
            has another length.
    """
    size = len(matrix)
    learned = [[_required(row, t, i) for i in range(t + 1)] for t, row in enumerate(matrix) if len(row) == size]
    if len(learned) != size:
        raise ValueError(
            f"a score matrix has as many columns as rows; got {size} rows of {[len(row) for row in matrix]}"
        )
    for baseline in (before, random_init):
        if baseline is not None and len(baseline) != size:
            raise ValueError(f"there is one score before learning per task; got {len(baseline)} for {size} tasks")
    last = learned[-1] if learned else []
    diagonal = [row[-1] for row in learned]
    return ContinualMeasures(
        acc=mean(last),
        bwt=mean(end - start for end, start in zip(last[:-1], diagonal[:-1], strict=True)),
        fwt=_forward_transfer(matrix, before),
        forgetting=mean(max(row[i] for row in learned[i:-1]) - last[i] for i in range(size - 1)),
        la=mean(diagonal),
        aia=mean(sum(row) / len(row) for row in learned),
        fwt_random_init=_forward_transfer(matrix, random_init),
    )


def mean(values: Iterable[float]) -> float | None:
    """Return the arithmetic mean, or None of no values."""
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else None


def _required(row: Sequence[float | None], t: int, i: int) -> float:
    value = row[i]
    if value is None:
        raise ValueError(f"the score on task {i + 1} after task {t + 1} is missing; it is needed, since i ≤ t")
    return value


def _forward_transfer(matrix: ScoreMatrix, before: Sequence[float | None] | None) -> float | None:
    return None if before is None else mean(_forward_transfers(matrix, before))


def _forward_transfers(matrix: ScoreMatrix, before: Sequence[float | None]) -> Iterator[float]:
    """Yield R[i−1, i] − b[i] for every task but the first."""
    for i in range(1, len(matrix)):
        ahead, start = matrix[i - 1][i], before[i]
        if ahead is not None and start is not None:
            yield ahead - start
