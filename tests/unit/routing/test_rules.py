"""Routers against direct computations and scikit-learn, calibration, and second opinions."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis as distance
from sklearn.covariance import shrunk_covariance
from sklearn.linear_model import Ridge
from torch import Tensor

from continual.features.pooling import encode
from continual.features.random_features import FrozenFeatures, frozen_features
from continual.features.signature import Signature, cholesky_factor, compute_signature
from continual.features.tokens import tokenize
from continual.routing import (
    ROUTERS,
    Opinion,
    Router,
    RoutingStatistics,
    build_router,
    choose_tasks,
    collect_held_out,
    compute_statistics,
    evenly_spaced,
    fit_statistics,
)
from continual.routing import router as calibration
from continual.routing.calibration import SMOOTHING, calibrated_loss, fit_calibration
from continual.routing.held_out import HeldOutRows
from continual.routing.mahalanobis import SHRINKAGES
from continual.routing.moments import AccumulatedMoments
from continual.routing.ridge import PENALTIES
from continual.routing.statistics import HELD_OUT, SCATTER_RANK
from registry.errors import BlobError
from tests.helpers.tiny_tasks import tiny_backbone

WIDTH = 6
NO_ROWS = HeldOutRows(torch.zeros(0, WIDTH), torch.zeros(0, dtype=torch.long), torch.zeros(0))


def cloud(
    seed: int, *, rows: int = 60, classes: int = 3, apart: float = 3.0, width: int = WIDTH
) -> tuple[Tensor, Tensor]:
    """Draw rows of classes around random means."""
    draw = torch.Generator().manual_seed(seed)
    means = apart * torch.randn(classes, width, generator=draw)
    labels = torch.arange(rows) % classes
    return means[labels] + torch.randn(rows, width, generator=draw), labels


def signed(seed: int, **shape: Any) -> Signature:
    x, y = cloud(seed, **shape)
    return compute_signature(x, y, count=int(y.max()) + 1)


def features_of(wide: Tensor) -> FrozenFeatures:
    return FrozenFeatures(wide[:, :2], wide)


def task(seed: int, *, apart: float = 3.0) -> RoutingStatistics:
    (x, y), held_out = cloud(seed, rows=90, apart=apart), slice(60, 90)
    trusted = fit_statistics(x[:60], y[:60], count=3, held_out=x[held_out], log_probs=torch.zeros(0))
    return compute_statistics(x[:60], y[:60], count=3, held_out=features_of(x[held_out]), evidence=trusted)


def close(actual: Tensor, expected: object, *, to: float = 1e-5) -> None:
    torch.testing.assert_close(actual.double(), torch.as_tensor(expected, dtype=torch.float64), rtol=to, atol=to)


def test_ridge_equals_sklearns_with_equal_weight_of_tasks() -> None:
    data = {"a": cloud(1), "b": cloud(2, rows=20, classes=2)}
    totals = AccumulatedMoments.from_tasks(
        {name: compute_signature(x, y, count=int(y.max()) + 1) for name, (x, y) in data.items()}
    )
    rule = ROUTERS["ridge"](totals, NO_ROWS)
    x = torch.cat([x for x, _ in data.values()])
    y = torch.cat([data["a"][1], data["b"][1] + 3])
    weights = torch.tensor([1 / 60] * 60 + [1 / 20] * 20)
    penalty = PENALTIES[0] * float(totals.moment.diagonal().mean())
    reference = Ridge(alpha=penalty, fit_intercept=False, solver="cholesky")
    reference.fit(x.double().numpy(), np.eye(5)[y], sample_weight=weights.double().numpy())
    probes = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(3))
    by_class = reference.predict(probes.double().numpy())
    close(rule.scores(probes), np.stack([by_class[:, :3].max(1), by_class[:, 3:].max(1)], 1), to=1e-4)
    close(rule.familiarity(probes), by_class.max(1), to=1e-4)


def test_mahalanobis_is_the_relative_distance_to_the_nearest_mean() -> None:
    data = {"a": cloud(6), "b": cloud(7, rows=20, classes=2)}
    totals = AccumulatedMoments.from_tasks(
        {name: compute_signature(x, y, count=int(y.max()) + 1) for name, (x, y) in data.items()}
    )
    rule = ROUTERS["mahalanobis"](totals, NO_ROWS)
    means = {name: [x[y == c].double().numpy().mean(0) for c in set(y.tolist())] for name, (x, y) in data.items()}
    within = [
        sum((x[y == c].double().numpy() - m).T @ (x[y == c].double().numpy() - m) for c, m in enumerate(means[name]))
        / (len(x) - len(means[name]))
        for name, (x, y) in data.items()
    ]
    precision = np.linalg.inv(shrunk_covariance(sum(within) / 2, shrinkage=SHRINKAGES[0]))
    centre = np.mean([x.double().numpy().mean(0) for x, _ in data.values()], axis=0)
    moment = np.mean([(x.double().T @ x.double() / len(x)).numpy() for x, _ in data.values()], axis=0)
    background_precision = np.linalg.inv(shrunk_covariance(moment - np.outer(centre, centre), shrinkage=SHRINKAGES[0]))
    probes = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(8))
    squares = np.array(
        [[min(distance(p, m, precision) ** 2 for m in of) for of in means.values()] for p in probes.numpy()]
    )
    scores = rule.scores(probes)
    close(scores[:, 0] - scores[:, 1], -0.5 * (squares[:, 0] - squares[:, 1]), to=1e-3)
    background = np.array([distance(p, centre, background_precision) ** 2 for p in probes.numpy()])
    close(rule.familiarity(probes), -0.5 * (squares.min(1) - background), to=1e-3)


@pytest.mark.parametrize("name", ["ridge", "mahalanobis"])
@given(st.permutations(range(4)))
def test_the_order_of_arrival_has_no_effect(name: str, order: list[int]) -> None:
    tasks = {f"t{seed}": task(seed) for seed in range(4)}
    probes = features_of(2 * torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(1)))
    first = build_router(tasks, kind=name)
    again = build_router({f"t{seed}": tasks[f"t{seed}"] for seed in order}, kind=name)
    assert again.tasks == first.tasks
    close(again.log_p(probes), first.log_p(probes), to=1e-6)
    close(again.familiarity(probes), first.familiarity(probes), to=1e-6)


def test_totals_are_order_independent_and_removal_is_exact() -> None:
    parts = {f"t{seed}": signed(seed) for seed in range(5)}
    joint, reordered = (
        AccumulatedMoments.from_tasks(parts),
        AccumulatedMoments.from_tasks(dict(reversed(parts.items()))),
    )
    extra = signed(9, rows=300)
    joint.add("later", extra)
    joint.remove("later", extra)
    assert list(joint.tasks) == list(parts)
    for name in ("moment", "within", "total"):
        close(getattr(joint, name), getattr(reordered, name), to=1e-9)


@pytest.mark.parametrize("name", ["ridge", "mahalanobis"])
def test_removing_and_adding_a_task_changes_no_answer(name: str) -> None:
    parts = {f"t{seed}": task(seed) for seed in range(4)}
    probes = features_of(2 * torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(1)))
    totals = AccumulatedMoments.from_tasks(parts)
    totals.remove("t1", parts["t1"])
    totals.add("t1", parts["t1"])
    again, first = build_router(parts, kind=name, totals=totals), build_router(parts, kind=name)
    assert again.tasks == first.tasks
    close(again.log_p(probes), first.log_p(probes), to=1e-6)


def test_low_rank_statistics_keep_the_leading_scatter() -> None:
    x, y = cloud(3)
    statistics, exact = task(3), compute_signature(x, y, count=3)
    close(compute_statistics(x, y, count=3, held_out=features_of(x)).scatter, exact.scatter, to=2e-2)
    wide = torch.randn(SCATTER_RANK + 200, SCATTER_RANK + 100, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(len(wide), dtype=torch.long)
    large = compute_statistics(wide, labels, count=1, held_out=features_of(wide))
    assert large.factor.shape == (SCATTER_RANK, SCATTER_RANK + 100)
    assert len(evenly_spaced(1000)) == len(set(evenly_spaced(1000))) == HELD_OUT
    assert evenly_spaced(3) == [0, 1, 2]
    expected = compute_signature(wide, labels, count=1).scatter
    assert float(large.scatter.trace()) == pytest.approx(float(expected.trace()), rel=1e-3)
    assert statistics.degrees_of_freedom == 57


def test_statistics_survive_bytes() -> None:
    statistics = task(1)
    back = RoutingStatistics.from_bytes(statistics.to_bytes())
    assert back.to_bytes() == statistics.to_bytes()
    assert back.evidence is not None
    assert RoutingStatistics.from_bytes(replace(statistics, evidence=None).to_bytes()).evidence is None
    with pytest.raises(BlobError, match="lack counts"):
        RoutingStatistics.from_bytes(signed(1).to_bytes().replace(b"counts", b"kounts"))


def test_calibration_weights_are_optimal_on_held_out_rows() -> None:
    draw = torch.Generator().manual_seed(0)
    true_tasks = torch.arange(300) % 3
    scores = [torch.randn(300, 3, generator=draw) + 2 * torch.nn.functional.one_hot(true_tasks, 3) for _ in range(2)]
    rows = HeldOutRows(torch.zeros(300, 1), true_tasks, torch.zeros(300))

    def entropy(a: float, b: float) -> float:
        logits = a * weights[0] * scores[0] + b * weights[1] * scores[1] + offsets
        return float(torch.nn.functional.cross_entropy(logits, true_tasks, label_smoothing=SMOOTHING))

    weights, offsets, *_ = fit_calibration(scores, rows)
    alternatives = ((0.8, 1.0), (1.0, 1.25), (0.5, 1.0), (1.0, 0.0), (0.0, 1.0))
    assert all(entropy(1.0, 1.0) < entropy(*factors) for factors in alternatives)
    assert calibrated_loss(weights[0] * scores[0] + weights[1] * scores[1], rows) < min(
        calibrated_loss(score, rows) for score in scores
    )


def test_a_task_that_attracts_others_inputs_gets_a_negative_offset() -> None:
    true_tasks = torch.arange(300) % 3
    scores = (
        torch.nn.functional.one_hot(true_tasks, 3) + torch.randn(300, 3, generator=torch.Generator().manual_seed(0)) / 3
    )
    (_,), even, *_ = fit_calibration([scores], HeldOutRows(torch.zeros(300, 1), true_tasks, torch.zeros(300)))
    scores[:, 1] += 1.0
    (weight,), offsets, *_ = fit_calibration([scores], HeldOutRows(torch.zeros(300, 1), true_tasks, torch.zeros(300)))
    assert float(even.abs().max()) < 0.5
    assert offsets[1] < -0.5
    assert offsets[1] < offsets[0] - 1
    assert weight > 0


def test_confidences_are_calibrated() -> None:
    """Overlapping inputs with a probability of p belong to the task in about p of the cases."""
    router = build_router({f"t{seed}": task(seed, apart=0.7) for seed in range(4)})
    rows = torch.cat([cloud(seed, rows=3000, apart=0.7)[0] for seed in range(4)])
    sure, chosen = router.confidence(router.log_p(features_of(rows))).exp().max(dim=1)
    right = (chosen == torch.arange(4).repeat_interleave(3000)).double()
    assert 0.5 < float(right.mean()) < 0.95
    assert abs(float(sure.mean()) - float(right.mean())) < 0.08


def test_the_threshold_abstains_for_the_given_share() -> None:
    parts = {f"t{seed}": task(seed) for seed in range(4)}
    router = build_router(parts)
    rows = collect_held_out([*parts], parts, features="random_features")
    scores = router.familiarity(features_of(rows.features)) + rows.fit
    for share in (0.05, 0.2):
        assert float((scores < router.threshold(share)).double().mean()) == pytest.approx(share, abs=0.02)
    assert router.threshold(0.0) == -torch.inf
    far = router.familiarity(features_of(torch.full((1, WIDTH), 40.0)))
    assert float(far) < router.threshold()


def test_a_single_task_takes_every_input() -> None:
    router = build_router({"only": task(1)})
    assert router.log_p(features_of(torch.randn(5, WIDTH))).tolist() == [[0.0]] * 5


def test_statistics_of_an_older_release_route_without_abstention() -> None:
    totals = AccumulatedMoments.from_tasks({"a": signed(1), "b": signed(2)})
    router = calibration.calibrate(totals, NO_ROWS, features="random_features", names=("mahalanobis",))
    assert router.log_p(features_of(cloud(2)[0])).argmax(dim=1).tolist() == [1] * 60
    assert router.threshold() == -torch.inf


def choose_with(router: Router, log_p: Tensor, surely: dict[int, float]) -> tuple[list[int], dict[int, list[int]]]:
    """Return the choices and the queries, with each task equally sure of every input."""
    calls: dict[int, list[int]] = {}

    def ask(questions: Mapping[int, list[int]]) -> dict[int, Opinion[str]]:
        calls.update(questions)
        return {
            number: Opinion(
                [f"{number} of {i}" for i in inputs],
                torch.full((len(inputs),), surely.get(number, 0.0)),
                torch.zeros(len(inputs)),
            )
            for number, inputs in questions.items()
        }

    decision = choose_tasks(router, log_p, ask)
    chosen = decision.tasks.tolist()
    assert list(decision.answers) == [f"{number} of {i}" for i, number in enumerate(chosen)]
    assert decision.confidence.tolist() == pytest.approx(decision.log_p.exp().amax(dim=1).tolist())
    return chosen, calls


def test_only_uncertain_inputs_get_second_opinions() -> None:
    router = replace(build_router({f"t{seed}": task(seed) for seed in range(3)}), candidates=2, margin=0.8)
    log_p = torch.tensor([[0.9, 0.06, 0.04], [0.5, 0.4, 0.1], [0.1, 0.3, 0.6]]).log()
    assert choose_with(router, log_p, {}) == ([0, 0, 2], {0: [0, 1], 1: [1, 2], 2: [2]})
    assert choose_with(router, log_p, {0: -1.0})[0] == [0, 1, 2], (
        "the router is sure of the first, and of the second not"
    )
    assert choose_with(router, log_p, {1: 9.0})[0] == [0, 1, 1]


def test_fit_is_in_standard_deviations_of_held_out_rows() -> None:
    (x, y), new = cloud(1), torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(5))
    statistics = fit_statistics(x[:40], y[:40], count=3, held_out=x[40:], log_probs=torch.tensor([-0.5, -1.5]))
    close(statistics.fit(x[40:]).mean(), 0.0, to=1e-4)
    close(statistics.fit(x[40:]).std(correction=0), 1.0, to=1e-4)
    close(statistics.held_out_fit, statistics.fit(x[40:]).double(), to=1e-3)
    assert float(statistics.mean_log_prob) == -1.0
    squares = [
        min(distance(p, m, statistics.precision.numpy()) ** 2 for m in statistics.means.numpy()) for p in new.numpy()
    ]
    close(
        statistics.fit(new), (-0.5 * np.array(squares) - float(statistics.centre)) / float(statistics.spread), to=1e-3
    )


def test_frozen_features_cover_every_layer_and_the_text_only() -> None:
    backbone = tiny_backbone("bert")
    tokens = tokenize(backbone, ["purr meow", "wave coral tide", "bark", "lovely bright superb day"], max_length=16)
    features = frozen_features(backbone, tokens)
    close(features.pooled, encode(backbone, tokens))
    assert features.random_features.shape == (4, 2 * (backbone.num_layers + 1) * backbone.hidden_size)
    assert bool((features.random_features >= 0).all())
    alone = frozen_features(backbone, tokens.take([2]))
    close(alone.random_features[0], features.random_features[2], to=1e-4)
    close(features.take([3, 1]).random_features, features.random_features[[3, 1]])


@pytest.mark.parametrize("name", ["ridge", "mahalanobis", "auto"])
@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_a_task_of_identical_rows_is_routed_to(name: str, others: int, noise: float) -> None:
    """Its covariance is zero, and what rounding leaves of a difference may be indefinite."""
    vector = 30 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    rows = vector.repeat(40, 1) + noise * torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(1))
    classes = torch.arange(40) % 2
    fit = fit_statistics(rows, classes, count=2, held_out=rows[:8], log_probs=torch.zeros(0))
    same = compute_statistics(rows, classes, count=2, held_out=features_of(rows[:8]), evidence=fit)
    parts = {"same": same} | {f"other{seed}": task(seed) for seed in range(1, 1 + others)}
    router = build_router(parts, kind=name)
    inputs = features_of(torch.cat([rows[:4], torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(2))]))
    log_p = router.log_p(inputs)
    assert bool(log_p.isfinite().all())
    assert bool(router.familiarity(inputs).isfinite().all())
    assert [router.tasks[i] for i in log_p[:4].argmax(dim=1)] == ["same"] * 4


def test_a_factor_of_a_matrix_that_rounding_made_indefinite() -> None:
    q, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    matrix = q @ torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, -1e-13], dtype=torch.float64)) @ q.T
    factor = cholesky_factor(matrix)
    close(factor @ factor.T, matrix, to=1e-8)
    with pytest.raises(RuntimeError, match="linalg"):
        cholesky_factor(-torch.eye(3))
