"""Measures of task similarity and transferability, against their definitions and libraries."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from sklearn.linear_model import BayesianRidge
from torch import Tensor

from continual.features.signature import Signature, compute_signature
from continual.transfer.similarity import SIGNATURE_MEASURES, delta_cosine, label_name_similarity, rank_by_similarity
from continual.transfer.transferability import TRANSFERABILITY_MEASURES, TransferView

SEEDS = st.integers(0, 10_000)
alignment, distance = SIGNATURE_MEASURES["alignment"], SIGNATURE_MEASURES["distance"]


def rows_of(seed: int, *, classes: int = 3, per_class: int = 8, d: int = 5) -> tuple[Tensor, Tensor]:
    """Draw rows of correlated clouds around class means."""
    draw = torch.Generator().manual_seed(seed)
    means, mix = 2 * torch.randn(classes, d, generator=draw), torch.randn(d, d, generator=draw)
    labels = torch.arange(classes).repeat_interleave(per_class)
    return means[labels] + torch.randn(len(labels), d, generator=draw) @ mix, labels


def own_of(seed: int, **shape: int) -> Signature:
    vectors, labels = rows_of(seed, **shape)
    return compute_signature(vectors, labels, count=int(labels.max()) + 1)


def made(x: Tensor, classes: Tensor) -> Signature:
    return compute_signature(x, classes, count=2)


@given(SEEDS, SEEDS, st.integers(2, 5), st.integers(2, 5))
def test_alignment_is_a_symmetric_share(a: int, b: int, c: int, d: int) -> None:
    first, second = own_of(a, classes=c), own_of(b, classes=d)
    assert -1e-12 <= alignment(first, second) <= 1 + 1e-12
    assert alignment(first, second) == pytest.approx(alignment(second, first), rel=1e-9)
    assert alignment(first, first) == pytest.approx(1.0)


def test_alignment_compares_between_class_scatters() -> None:
    def between(signature: Signature) -> Tensor:
        rows, centre = signature.rows, signature.sums.sum(dim=0) / signature.rows
        moments = zip(signature.counts, signature.means, strict=True)
        return torch.stack([n / rows * torch.outer(m - centre, m - centre) for n, m in moments]).sum(dim=0)

    first, second = own_of(1), own_of(2, classes=2)
    b, c = between(first), between(second)
    assert alignment(first, second) == pytest.approx(float((b * c).sum() / (b.norm() * c.norm())))


def test_alignment_ignores_shifts_and_detects_directions() -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    classes = torch.tensor([0, 1])
    across, along = made(x, classes), made(x.flip(1), classes)
    assert alignment(across, made(3 * x + 7, classes)) == pytest.approx(1.0)
    assert alignment(across, along) == 0.0
    assert alignment(across, made(torch.ones(2, 2), classes)) == 0.0, "means alike tell nothing apart"


def test_the_most_similar_task_is_ranked_first() -> None:
    signature = own_of(1)
    ranked = rank_by_similarity(signature, {"other": own_of(2), "same": signature, "third": own_of(3)})
    assert ranked[0][0] == "same"
    assert ranked[0][1] == pytest.approx(1.0)
    assert [s for _, s in ranked] == sorted((s for _, s in ranked), reverse=True)


def test_the_distance_is_that_of_two_normal_distributions() -> None:
    (x, a), (y, b) = rows_of(3), rows_of(4)
    first, second = (np.cov(rows.double().numpy().T, bias=True) for rows in (x, y))
    spread = np.trace(first + second - 2 * sqrtm(first @ second).real)
    expected = float((x.double().mean(0) - y.double().mean(0)).square().sum()) + spread
    actual = distance(compute_signature(x, a, count=3), compute_signature(y, b, count=3))
    assert actual == pytest.approx(-expected, rel=1e-6)
    assert distance(own_of(3), own_of(3)) == pytest.approx(0.0, abs=1e-4)


def test_names_are_compared_each_with_the_nearest() -> None:
    names, other_names = torch.eye(3)[:2], torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 5.0], [3.0, 0.0, 0.0]])
    assert label_name_similarity(names, other_names) == pytest.approx((1.0 + 0.5**0.5) / 2)
    assert label_name_similarity(names, None) is label_name_similarity(None, names) is None


def test_deltas_are_compared_by_the_values_that_both_have() -> None:
    def moved(**values: list[float]) -> dict[str, Tensor]:
        return {key: torch.tensor(value) for key, value in values.items()}

    assert delta_cosine(moved(a=[1.0, 0.0], b=[2.0]), moved(a=[1.0, 1.0], c=[9.0])) == pytest.approx(0.5**0.5)
    assert delta_cosine(moved(a=[1.0]), moved(a=[1.0, 1.0])) is None, "other shapes"
    assert delta_cosine(moved(a=[0.0]), moved(a=[1.0])) == 0.0, "nothing was learned"


def look(seed: int, *, count: int = 3, answers: Tensor | None = None, d: int = 5) -> TransferView:
    x, y = rows_of(seed, classes=count, d=d)
    return TransferView(x, y, count, answers, 0.75)


@given(SEEDS)
def test_leep_is_the_sum_of_its_definition(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    theta = torch.softmax(torch.randn(24, 4, generator=draw), dim=1)
    view = look(seed, answers=theta)
    total = 0.0
    for i in range(24):
        chance = 0.0
        for z in range(4):
            same = sum(float(theta[j, z]) for j in range(24) if view.classes[j] == view.classes[i])
            chance += same / float(theta[:, z].sum()) * float(theta[i, z])
        total += np.log(chance)
    assert TRANSFERABILITY_MEASURES["leep"](view) == pytest.approx(total / 24, rel=1e-5)


def test_leep_is_best_for_a_perfect_head() -> None:
    view = look(1)
    confident = TransferView(view.vectors, view.classes, 3, torch.eye(3)[view.classes], 0.0)
    assert TRANSFERABILITY_MEASURES["leep"](confident) == pytest.approx(0.0)
    assert TRANSFERABILITY_MEASURES["leep"](view) is None
    assert (
        TRANSFERABILITY_MEASURES["leep"](
            TransferView(view.vectors, torch.zeros(24, dtype=torch.long), 1, torch.eye(3)[view.classes], 0.0)
        )
        is None
    )


@pytest.mark.parametrize("d", [4, 40])
def test_logme_equals_scikit_learns_evidence(d: int) -> None:
    """Bayesian ridge regression of each class with flat priors; more rows than features, and fewer."""
    x, y = rows_of(5, d=d)
    expected = []
    for c in range(3):
        prior = dict.fromkeys(("alpha_1", "alpha_2", "lambda_1", "lambda_2"), 0.0)
        ridge = BayesianRidge(max_iter=1000, tol=1e-10, compute_score=True, fit_intercept=False, **prior)
        ridge.fit(x.double().numpy(), (y == c).double().numpy())
        expected.append(ridge.scores_[-1] / len(x))
    actual = TRANSFERABILITY_MEASURES["logme"](TransferView(x, y, 3, None, 0.0))
    assert actual == pytest.approx(float(np.mean(expected)), rel=1e-3 if d < len(x) else 5e-2)


def test_logme_prefers_discriminative_features() -> None:
    base = look(2)
    noise = TransferView(torch.randn(24, 5, generator=torch.Generator().manual_seed(0)), base.classes, 3, None, 0.0)
    sharp = TransferView(torch.nn.functional.one_hot(base.classes, 5).float(), base.classes, 3, None, 0.0)
    evidence, evidence_of_noise = (TRANSFERABILITY_MEASURES["logme"](view) for view in (sharp, noise))
    assert evidence is not None
    assert evidence_of_noise is not None
    assert evidence > evidence_of_noise
    assert TRANSFERABILITY_MEASURES["logme"](TransferView(base.vectors, base.classes, 1, None, 0.0)) is None
    assert TRANSFERABILITY_MEASURES["held_out"](base) == 0.75
