"""Scores and confidence intervals against scikit-learn, scipy and second implementations."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as sk

from continual.backbones.backbone import Backbone
from continual.deltas import attached
from continual.features.pooling import pooled_features
from continual.features.tokens import pad
from continual.kinds import ForwardContext
from continual.kinds.classification import Classification
from continual.metrics import (
    SECONDARY_METRICS,
    metric_score,
    metrics_of,
    required_inputs,
    score_with_interval,
    wilson_interval,
)
from tasks import KIND_SCHEMAS
from tests.helpers.tiny_tasks import fresh_delta, head_of, labels_of, logits, prepared_rows, rows_of

ANSWERS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=4, max_size=40)


def noisy(n: int, *, classes: int = 3, seed: int = 0) -> tuple[list[int], list[int]]:
    """Draw answers of which about seven in ten are correct."""
    draw = random.Random(seed)
    truth = [draw.randrange(classes) for _ in range(n)]
    return truth, [t if draw.random() < 0.7 else draw.randrange(classes) for t in truth]


@pytest.mark.parametrize(("right", "rows"), [(0, 5), (1, 1), (3, 4), (9, 10), (500, 1000), (1000, 1000)])
def test_wilson_intervals_equal_scipys(right: int, rows: int) -> None:
    expected = binomtest(right, rows).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson_interval(right / rows, rows) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.integers(1, 500), st.data())
def test_wilson_intervals_lie_in_0_1_and_hold_the_share(rows: int, data: st.DataObject) -> None:
    share = data.draw(st.integers(0, rows)) / rows
    low, high = wilson_interval(share, rows)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1


def test_every_metric_of_a_task_exists() -> None:
    for kind, schema in KIND_SCHEMAS.items():
        assert tuple(metrics_of(kind)) == (*schema.metrics, *SECONDARY_METRICS.get(kind, ()))


@given(ANSWERS)
def test_metrics_equal_sklearns(pairs: list[tuple[int, int]]) -> None:
    truth, answers = map(list, zip(*pairs, strict=True))
    macro_f1 = sk.f1_score(truth, answers, average="macro", zero_division=0.0)
    assert metric_score("accuracy", truth, answers) == sk.accuracy_score(truth, answers)
    assert metric_score("macro_f1", truth, answers) == pytest.approx(macro_f1)
    assert metric_score("mcc", truth, answers) == pytest.approx(sk.matthews_corrcoef(truth, answers))


def test_an_answer_without_a_row_counts_in_the_mean_over_labels() -> None:
    truth, answers = ["a", "a", "b", "b"], ["a", "c", "b", "b"]
    assert metric_score("macro_f1", truth, answers) == pytest.approx((2 / 3 + 1 + 0) / 3)


@pytest.mark.parametrize(
    "metric", [name for name in metrics_of("classification") if not required_inputs(name, kind="classification")]
)
def test_perfect_answers_score_one_and_wrong_ones_zero(metric: str) -> None:
    truth = [0, 1, 2, 0, 1, 2]
    assert metric_score(metric, truth, truth) == 1.0
    assert metric_score(metric, truth, [(label + 1) % 3 for label in truth]) <= 0.0


@pytest.mark.parametrize("metric", ["macro_f1", "mcc"])
@pytest.mark.parametrize(("rows", "classes"), [(60, 2), (200, 3), (300, 20)])
def test_the_bootstrap_brackets_the_score_and_is_repeatable(metric: str, rows: int, classes: int) -> None:
    truth, answers = noisy(rows, classes=classes)
    score = score_with_interval(metric, truth, answers)
    assert score.value == pytest.approx(metric_score(metric, truth, answers))
    assert score.low < score.value < score.high
    assert score.high - score.low < 4 / rows**0.5
    assert score_with_interval(metric, truth, answers) == score


def test_the_bootstrap_narrows_with_more_rows() -> None:
    few, many = (score_with_interval("macro_f1", *noisy(n)) for n in (50, 800))
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_accuracy_has_wilsons_interval() -> None:
    score = score_with_interval("accuracy", [0, 1, 1, 0], [0, 1, 1, 1])
    assert (score.value, score.rows, (score.low, score.high)) == (0.75, 4, wilson_interval(0.75, 4))


def test_classes_are_numbered_by_the_tasks_labels(bert: Backbone) -> None:
    rows = rows_of("animals", 6)
    prepared = Classification(labels_of("animals")).prepare(bert, rows, max_length=32)
    assert [labels_of("animals")[i] for i in prepared.classes.tolist()] == list(rows.labels) == list(prepared.truth)
    assert len(prepared.tokens) == 6


def test_logits_are_the_head_of_each_rows_pooled_states(backbone: Backbone) -> None:
    delta, rows = fresh_delta(backbone, "adapter"), prepared_rows(backbone, "mood", 7)
    actual, head = logits(backbone, delta, rows.tokens), head_of(delta)
    with torch.no_grad(), attached(backbone, delta):
        alone = [head(pooled_features(backbone, pad(backbone, rows.tokens, [i]), head.readout)) for i in range(7)]
    torch.testing.assert_close(actual, torch.cat(alone), rtol=1e-4, atol=1e-5)
    kind = Classification(labels_of("mood"))
    outputs = kind.outputs(ForwardContext(backbone, delta, rows), delta.head)
    assert torch.equal(outputs["logits"], actual)
    answers = kind.answers(backbone, outputs, rows)
    assert [answer.label for answer in answers] == [kind.labels[i] for i in actual.argmax(dim=1).tolist()]
    assert [answer.score for answer in answers] == pytest.approx(torch.softmax(actual, dim=1).amax(dim=1).tolist())
