"""Metrics of labels and their probabilities: against scikit-learn, and against a definition written out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sk

from continual.kinds import Answer
from continual.kinds.answer import LabelDistribution
from continual.kinds.classification import label_probabilities
from continual.metrics import metric_score, metrics_of, required_inputs, score_with_interval
from tasks.errors import InputError

LABELS = ("a", "b", "c", "d")
WEIGHTS = st.sampled_from([0.01, 0.1, 0.2, 0.5, 1.0])  # few values, so that probabilities tie


@st.composite
def predictions(draw: st.DrawFn, *, labels: int | None = None) -> tuple[tuple[str, ...], list[str], NDArray[Any]]:
    """Draw two to four labels, the right label of some rows, and their probabilities [N, C]."""
    count = labels or draw(st.integers(2, 4))
    rows = draw(st.lists(st.tuples(st.integers(0, count - 1), *[WEIGHTS] * count), min_size=2, max_size=30))
    weights = np.array([row[1:] for row in rows])
    return LABELS[:count], [LABELS[row[0]] for row in rows], weights / weights.sum(axis=1, keepdims=True)


def score(metric: str, labels: Sequence[str], truth: Sequence[str], probabilities: NDArray[Any]) -> float:
    answers = [labels[i] for i in probabilities.argmax(axis=1)]
    return metric_score(metric, truth, answers, inputs={"labels": labels, "probabilities": probabilities})


@pytest.mark.parametrize("labels", [("a", "b"), LABELS])
def test_resamples_have_the_area_of_their_rows(labels: tuple[str, ...]) -> None:
    draw = np.random.default_rng(2)
    truth = [labels[i] for i in draw.integers(0, len(labels), size=60)]
    probabilities = draw.dirichlet([1.0] * len(labels), size=60).round(1)
    scorer = metrics_of("classification")["auroc"](truth, truth, labels=labels, probabilities=probabilities)
    for _ in range(5):
        rows = draw.integers(60, size=60)
        expected = score("auroc", labels, [truth[i] for i in rows], probabilities[rows])
        assert scorer(rows) == pytest.approx(expected)


@given(predictions())
def test_the_area_under_the_curve_is_scikit_learns(drawn: tuple[tuple[str, ...], list[str], NDArray[Any]]) -> None:
    labels, truth, probabilities = drawn
    columns = range(len(labels)) if len(labels) > 2 else [1]
    measurable = [i for i in columns if 0 < truth.count(labels[i]) < len(truth)]
    areas = [sk.roc_auc_score([label == labels[i] for label in truth], probabilities[:, i]) for i in measurable]
    expected = np.mean(areas) if areas else 0.5
    assert score("auroc", labels, truth, probabilities) == pytest.approx(expected)
    if len(labels) > 2 and set(truth) == set(labels):
        macro = sk.roc_auc_score(truth, probabilities, multi_class="ovr", average="macro", labels=labels)
        assert expected == pytest.approx(macro)


@given(predictions(labels=2))
def test_binary_f1_is_scikit_learns_for_the_second_label(
    drawn: tuple[tuple[str, ...], list[str], NDArray[Any]],
) -> None:
    labels, truth, probabilities = drawn
    answers = [labels[i] for i in probabilities.argmax(axis=1)]
    expected = sk.f1_score([t == "b" for t in truth], [a == "b" for a in answers], zero_division=0.0)
    assert score("f1", labels, truth, probabilities) == pytest.approx(expected)


def test_binary_f1_is_refused_for_more_labels() -> None:
    with pytest.raises(InputError, match="the F1 score of the second of two labels, and the task has 3; use macro_f1"):
        metric_score("f1", ["a"], ["a"], inputs={"labels": ("a", "b", "c")})


def expected_calibration_error(truth: Sequence[str], labels: Sequence[str], probabilities: NDArray[Any]) -> float:
    """Guo et al. (2017), equation 3, with 15 bins ((m − 1) / 15, m / 15]."""
    total = 0.0
    for m in range(1, 16):
        rows = [i for i, row in enumerate(probabilities) if (m - 1) / 15 < max(row) <= m / 15]
        if rows:
            accuracy = sum(labels[int(np.argmax(probabilities[i]))] == truth[i] for i in rows) / len(rows)
            confidence = sum(max(probabilities[i]) for i in rows) / len(rows)
            total += len(rows) / len(truth) * abs(accuracy - confidence)
    return total


@given(predictions())
def test_the_calibration_error_is_its_definition(drawn: tuple[tuple[str, ...], list[str], NDArray[Any]]) -> None:
    labels, truth, probabilities = drawn
    expected = expected_calibration_error(truth, labels, probabilities)
    assert score("ece", labels, truth, probabilities) == pytest.approx(expected, abs=1e-12)


def test_the_calibration_error_by_hand() -> None:
    """Two rows at 0.9, of which one is right, and two at 0.6, both right: ½ · 0.4 + ½ · 0.4."""
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    assert score("ece", ("a", "b"), ["a", "b", "a", "b"], probabilities) == pytest.approx(0.4)
    certain = np.eye(2)[[0, 1, 1]]
    assert score("ece", ("a", "b"), ["a", "b", "b"], certain) == 0.0


@pytest.mark.parametrize("metric", ["auroc", "f1"])
def test_the_bootstrap_brackets_the_score(metric: str) -> None:
    draw = np.random.default_rng(0)
    classes = draw.integers(0, 2, size=200)
    positive = 1 / (1 + np.exp(-(2 * classes - 1) - draw.normal(size=200)))
    inputs = {"labels": ("a", "b"), "probabilities": np.stack([1 - positive, positive], axis=1)}
    truth, answers = ([("a", "b")[int(i)] for i in side] for side in (classes, positive > 0.5))
    measured = score_with_interval(metric, truth, answers, inputs=inputs)
    assert measured.low < measured.value < measured.high
    assert measured.high - measured.low < 0.2


@pytest.mark.parametrize("metric", metrics_of("classification"))
def test_permuting_rows_and_labels_changes_no_score(metric: str) -> None:
    draw = np.random.default_rng(1)
    probabilities = draw.dirichlet([1.0, 1.0], size=50)
    truth = [("a", "b")[i] for i in draw.integers(0, 2, size=50)]
    order = draw.permutation(50)
    permuted = score(metric, ("a", "b"), [truth[i] for i in order], probabilities[order])
    assert score(metric, ("a", "b"), truth, probabilities) == pytest.approx(permuted)


def test_metrics_declare_what_they_need() -> None:
    needed = {name: required_inputs(name, kind="classification") for name in metrics_of("classification")}
    assert needed["accuracy"] == needed["macro_f1"] == needed["mcc"] == ()
    assert needed["auroc"] == ("labels", "probabilities")
    assert needed["ece"] == ("probabilities",)
    with pytest.raises(InputError, match="needs labels, probabilities, and probabilities were not given"):
        metric_score("auroc", ["a", "b"], ["a", "b"], inputs={"labels": ("a", "b")})


def test_probabilities_follow_the_labels_of_the_task() -> None:
    """An older version knows fewer labels, in another order; the answer to a misrouted row has no distribution."""
    distribution = LabelDistribution(("c", "a"), np.array([0.25, 0.75], dtype=np.float32))
    answers = [Answer("a", 0.75, distribution), Answer("b", None)]
    assert label_probabilities(answers, ("a", "b", "c")).tolist() == [[0.75, 0.0, 0.25], [0.0, 1.0, 0.0]]
    assert label_probabilities(answers, ("a", "b")).tolist() == [[0.75, 0.0], [0.0, 1.0]]
