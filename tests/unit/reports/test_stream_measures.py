"""Measures of continual learning, by hand and by invariants; matrix rows are after task t, columns task i."""

from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from continual.reports.stream_measures import ContinualMeasures, continual_measures, mean

# Three tasks; the first is forgotten by half and comes back in part, the second gets better.
BY_HAND = [
    [0.9, 0.3, 0.2],
    [0.5, 0.8, 0.4],
    [0.7, 0.9, 0.6],
]
BEFORE = [0.5, 0.1, 0.5]
RANDOM_INIT = [0.4, 0.2, 0.1]


def test_three_tasks_by_hand() -> None:
    measures = continual_measures(BY_HAND, BEFORE, random_init=RANDOM_INIT)
    assert measures.acc == pytest.approx((0.7 + 0.9 + 0.6) / 3)
    assert measures.bwt == pytest.approx(((0.7 - 0.9) + (0.9 - 0.8)) / 2)
    assert measures.fwt == pytest.approx(((0.3 - 0.1) + (0.4 - 0.5)) / 2)
    assert measures.fwt_random_init == pytest.approx(((0.3 - 0.2) + (0.4 - 0.1)) / 2)
    assert measures.forgetting == pytest.approx(((0.9 - 0.7) + (0.8 - 0.9)) / 2)
    assert measures.la == pytest.approx((0.9 + 0.8 + 0.6) / 3)
    assert measures.aia == pytest.approx((0.9 + (0.5 + 0.8) / 2 + (0.7 + 0.9 + 0.6) / 3) / 3)


def test_forgetting_compares_with_the_best_row_and_bwt_with_the_diagonal() -> None:
    measures = continual_measures([[0.5, None, None], [0.9, 0.5, None], [0.6, 0.5, 0.5]])
    assert measures.forgetting == pytest.approx(((0.9 - 0.6) + 0.0) / 2)
    assert measures.bwt == pytest.approx(((0.6 - 0.5) + 0.0) / 2)


def test_the_last_row_is_not_in_the_maximum() -> None:
    assert continual_measures([[0.4, None], [0.9, 0.5]]).forgetting == pytest.approx(-0.5)


def test_measures_of_one_task_and_of_none() -> None:
    alone = continual_measures([[0.8]], [0.5])
    assert alone == ContinualMeasures(acc=0.8, bwt=None, fwt=None, forgetting=None, la=0.8, aia=0.8)
    assert continual_measures([]) == ContinualMeasures(None, None, None, None, None, None)
    assert continual_measures([], []) == continual_measures([])


def test_forward_transfer_uses_measured_values_only() -> None:
    """Values above the diagonal may be missing, as for routed scores; without any the transfer is None."""
    assert continual_measures(BY_HAND).fwt is None
    assert continual_measures(BY_HAND, BEFORE).fwt_random_init is None
    assert continual_measures(BY_HAND, random_init=[None] * 3).fwt_random_init is None
    assert continual_measures([[0.9, 0.3, None], [0.5, 0.8, None], [0.7, 0.9, 0.6]], BEFORE).fwt == pytest.approx(0.2)
    assert continual_measures(
        [[0.9, 0.3, 0.1], [0.5, 0.8, 0.4], [0.7, 0.9, 0.6]], [None, None, 0.1]
    ).fwt == pytest.approx(0.3)
    assert continual_measures([[0.9, None], [0.9, 0.8]], [0.5, 0.5]).fwt is None


@pytest.mark.parametrize(
    "matrix", [[[0.9, 0.4]], [[0.9], [0.7, 0.8]], [[0.9, 0.1, 0.1], [0.7, 0.8, 0.1]], [[0.5], [0.5]], [[]]], ids=str
)
def test_a_matrix_that_is_not_square_is_refused(matrix: Any) -> None:
    with pytest.raises(ValueError, match="as many columns as rows"):
        continual_measures(matrix)


@pytest.mark.parametrize(("t", "i"), [(0, 0), (1, 0), (1, 1)])
def test_a_missing_score_is_refused_by_name(t: int, i: int) -> None:
    matrix: list[list[float | None]] = [[0.9, None], [0.7, 0.8]]
    matrix[t][i] = None
    with pytest.raises(ValueError, match=f"task {i + 1} after task {t + 1} is missing"):
        continual_measures(matrix)


@pytest.mark.parametrize("before", [[0.5], [0.5, 0.5, 0.5]], ids=["short", "long"])
def test_scores_before_learning_must_match_the_tasks(before: list[float]) -> None:
    with pytest.raises(ValueError, match="before"):
        continual_measures([[0.9, 0.4], [0.7, 0.8]], before)
    with pytest.raises(ValueError, match="before"):
        continual_measures([[0.9, 0.4], [0.7, 0.8]], random_init=before)


def test_the_mean_of_nothing_is_none() -> None:
    assert mean([]) is None
    assert mean([0.0]) == 0.0


SCORES = st.floats(0, 1)


def values_of(matrix: list[list[float]]) -> dict[str, float]:
    """Return the measures of a matrix that has them all."""
    measures = asdict(continual_measures(matrix))
    return {name: measures[name] for name in ("acc", "bwt", "forgetting", "la", "aia")}


@st.composite
def matrices(draw: st.DrawFn) -> list[list[float]]:
    size = draw(st.integers(2, 5))
    return [[draw(SCORES) for _ in range(size)] for _ in range(size)]


@given(matrices())
def test_forgetting_is_at_least_minus_bwt(matrix: list[list[float]]) -> None:
    """max_l R[l, i] ≥ R[i, i] for every i < T, so forgetting ≥ −BWT; equal where no score rose in between."""
    measures = values_of(matrix)
    assert measures["forgetting"] >= -measures["bwt"] - 1e-12
    two = values_of([row[:2] for row in matrix[:2]])
    assert two["forgetting"] == pytest.approx(-two["bwt"])


@given(matrices())
def test_means_lie_between_minimum_and_maximum(matrix: list[list[float]]) -> None:
    measures, size = values_of(matrix), len(matrix)
    assert min(matrix[-1]) - 1e-12 <= measures["acc"] <= max(matrix[-1]) + 1e-12
    diagonal = [matrix[i][i] for i in range(size)]
    assert min(diagonal) - 1e-12 <= measures["la"] <= max(diagonal) + 1e-12
    assert all(0 <= measures[name] <= 1 + 1e-12 for name in ("acc", "la", "aia"))
    assert all(-1 - 1e-12 <= measures[name] <= 1 + 1e-12 for name in ("bwt", "forgetting"))
    assert size * (measures["acc"] - measures["la"]) == pytest.approx((size - 1) * measures["bwt"], abs=1e-9)


@given(st.lists(SCORES, min_size=2, max_size=6))
def test_constant_scores_have_zero_forgetting_and_transfer(scores: list[float]) -> None:
    """Exactly zero, as isolated deltas must show."""
    measures = continual_measures([scores] * len(scores), scores)
    assert (measures.bwt, measures.forgetting, measures.fwt) == (0.0, 0.0, 0.0)
    assert measures.acc == measures.la


@given(matrices(), st.floats(-5, 5))
def test_values_above_the_diagonal_affect_transfer_only(matrix: list[list[float]], replacement: float) -> None:
    changed = [[replacement if i > t else value for i, value in enumerate(row)] for t, row in enumerate(matrix)]
    assert continual_measures(changed) == continual_measures(matrix)
