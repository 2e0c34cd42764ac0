"""The measures, by hand and by what must hold for any matrix. Rows: after learning task t; columns: score on task i."""

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


def test_three_tasks_by_hand() -> None:
    found = continual_measures(BY_HAND, BEFORE)
    assert found.acc == pytest.approx((0.7 + 0.9 + 0.6) / 3)
    assert found.bwt == pytest.approx(((0.7 - 0.9) + (0.9 - 0.8)) / 2)
    assert found.fwt == pytest.approx(((0.3 - 0.1) + (0.4 - 0.5)) / 2)
    assert found.forgetting == pytest.approx(((0.9 - 0.7) + (0.8 - 0.9)) / 2)
    assert found.la == pytest.approx((0.9 + 0.8 + 0.6) / 3)
    assert found.aia == pytest.approx((0.9 + (0.5 + 0.8) / 2 + (0.7 + 0.9 + 0.6) / 3) / 3)


def test_forgetting_counts_from_the_best_row_and_bwt_from_the_tasks_own() -> None:
    found = continual_measures([[0.5, None, None], [0.9, 0.5, None], [0.6, 0.5, 0.5]])
    assert found.forgetting == pytest.approx(((0.9 - 0.6) + 0.0) / 2)
    assert found.bwt == pytest.approx(((0.6 - 0.5) + 0.0) / 2)


def test_the_last_row_is_not_in_the_maximum() -> None:
    assert continual_measures([[0.4, None], [0.9, 0.5]]).forgetting == pytest.approx(-0.5)


def test_one_task_and_none() -> None:
    alone = continual_measures([[0.8]], [0.5])
    assert alone == ContinualMeasures(acc=0.8, bwt=None, fwt=None, forgetting=None, la=0.8, aia=0.8)
    assert continual_measures([]) == ContinualMeasures(None, None, None, None, None, None)
    assert continual_measures([], []) == continual_measures([])


def test_transfer_is_of_what_was_measured() -> None:
    """What is above the diagonal may be missing, as for a routed task; nothing measured gives nothing."""
    assert continual_measures(BY_HAND).fwt is None
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
def test_as_many_scores_before_as_tasks(before: list[float]) -> None:
    with pytest.raises(ValueError, match="before"):
        continual_measures([[0.9, 0.4], [0.7, 0.8]], before)


def test_mean_of_nothing_is_nothing() -> None:
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
def test_forgetting_is_at_least_what_is_lost_since_learning(matrix: list[list[float]]) -> None:
    """max_l R[l, i] ≥ R[i, i] for every i < T, so forgetting ≥ −BWT; equal where no score rose in between."""
    measures = values_of(matrix)
    assert measures["forgetting"] >= -measures["bwt"] - 1e-12
    two = values_of([row[:2] for row in matrix[:2]])
    assert two["forgetting"] == pytest.approx(-two["bwt"])


@given(matrices())
def test_means_stay_between_the_least_and_the_greatest(matrix: list[list[float]]) -> None:
    measures, size = values_of(matrix), len(matrix)
    assert min(matrix[-1]) - 1e-12 <= measures["acc"] <= max(matrix[-1]) + 1e-12
    diagonal = [matrix[i][i] for i in range(size)]
    assert min(diagonal) - 1e-12 <= measures["la"] <= max(diagonal) + 1e-12
    assert all(0 <= measures[name] <= 1 + 1e-12 for name in ("acc", "la", "aia"))
    assert all(-1 - 1e-12 <= measures[name] <= 1 + 1e-12 for name in ("bwt", "forgetting"))
    assert size * (measures["acc"] - measures["la"]) == pytest.approx((size - 1) * measures["bwt"], abs=1e-9)


@given(st.lists(SCORES, min_size=2, max_size=6))
def test_scores_that_never_change_are_neither_forgotten_nor_gained(scores: list[float]) -> None:
    """Exactly: isolated deltas must show a zero, not something near it."""
    found = continual_measures([scores] * len(scores), scores)
    assert (found.bwt, found.forgetting, found.fwt) == (0.0, 0.0, 0.0)
    assert found.acc == found.la


@given(matrices(), st.floats(-5, 5))
def test_what_stands_above_the_diagonal_bears_on_transfer_alone(matrix: list[list[float]], other: float) -> None:
    changed = [[other if i > t else value for i, value in enumerate(row)] for t, row in enumerate(matrix)]
    assert continual_measures(changed) == continual_measures(matrix)
