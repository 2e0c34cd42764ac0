"""Measures of how alike tasks are, against their definitions and against libraries."""

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
    """Rows in correlated clouds around means of their own."""
    draw = torch.Generator().manual_seed(seed)
    means, mix = 2 * torch.randn(classes, d, generator=draw), torch.randn(d, d, generator=draw)
    found = torch.arange(classes).repeat_interleave(per_class)
    return means[found] + torch.randn(len(found), d, generator=draw) @ mix, found


def own_of(seed: int, **shape: int) -> Signature:
    vectors, found = rows_of(seed, **shape)
    return compute_signature(vectors, found, count=int(found.max()) + 1)


def made(x: Tensor, classes: Tensor) -> Signature:
    return compute_signature(x, classes, count=2)


@given(SEEDS, SEEDS, st.integers(2, 5), st.integers(2, 5))
def test_alignment_is_a_symmetric_share(a: int, b: int, c: int, d: int) -> None:
    one, two = own_of(a, classes=c), own_of(b, classes=d)
    assert -1e-12 <= alignment(one, two) <= 1 + 1e-12
    assert alignment(one, two) == pytest.approx(alignment(two, one), rel=1e-9)
    assert alignment(one, one) == pytest.approx(1.0)


def test_alignment_is_that_of_the_between_class_scatters() -> None:
    def between(signature: Signature) -> Tensor:
        rows, centre = signature.rows, signature.sums.sum(dim=0) / signature.rows
        moments = zip(signature.counts, signature.means, strict=True)
        return torch.stack([n / rows * torch.outer(m - centre, m - centre) for n, m in moments]).sum(dim=0)

    first, second = own_of(1), own_of(2, classes=2)
    b, c = between(first), between(second)
    assert alignment(first, second) == pytest.approx(float((b * c).sum() / (b.norm() * c.norm())))


def test_alignment_knows_shifts_and_other_directions() -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    classes = torch.tensor([0, 1])
    across, along = made(x, classes), made(x.flip(1), classes)
    assert alignment(across, made(3 * x + 7, classes)) == pytest.approx(1.0)
    assert alignment(across, along) == 0.0
    assert alignment(across, made(torch.ones(2, 2), classes)) == 0.0, "means alike tell nothing apart"


def test_nearest_comes_first() -> None:
    own = own_of(1)
    ranked = rank_by_similarity(own, {"other": own_of(2), "same": own, "third": own_of(3)})
    assert ranked[0][0] == "same"
    assert ranked[0][1] == pytest.approx(1.0)
    assert [s for _, s in ranked] == sorted((s for _, s in ranked), reverse=True)


def test_the_distance_is_that_of_two_normal_distributions() -> None:
    (x, a), (y, b) = rows_of(3), rows_of(4)
    first, second = (np.cov(rows.double().numpy().T, bias=True) for rows in (x, y))
    spread = np.trace(first + second - 2 * sqrtm(first @ second).real)
    expected = float((x.double().mean(0) - y.double().mean(0)).square().sum()) + spread
    found = distance(compute_signature(x, a, count=3), compute_signature(y, b, count=3))
    assert found == pytest.approx(-expected, rel=1e-6)
    assert distance(own_of(3), own_of(3)) == pytest.approx(0.0, abs=1e-4)


def test_names_are_compared_each_with_the_nearest() -> None:
    own, other = torch.eye(3)[:2], torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 5.0], [3.0, 0.0, 0.0]])
    assert label_name_similarity(own, other) == pytest.approx((1.0 + 0.5**0.5) / 2)
    assert label_name_similarity(own, None) is label_name_similarity(None, own) is None


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
    own = look(seed, answers=theta)
    total = 0.0
    for i in range(24):
        chance = 0.0
        for z in range(4):
            same = sum(float(theta[j, z]) for j in range(24) if own.classes[j] == own.classes[i])
            chance += same / float(theta[:, z].sum()) * float(theta[i, z])
        total += np.log(chance)
    assert TRANSFERABILITY_MEASURES["leep"](own) == pytest.approx(total / 24, rel=1e-5)


def test_leep_knows_a_head_that_says_all() -> None:
    own = look(1)
    told = TransferView(own.vectors, own.classes, 3, torch.eye(3)[own.classes], 0.0)
    assert TRANSFERABILITY_MEASURES["leep"](told) == pytest.approx(0.0)
    assert TRANSFERABILITY_MEASURES["leep"](own) is None
    assert (
        TRANSFERABILITY_MEASURES["leep"](
            TransferView(own.vectors, torch.zeros(24, dtype=torch.long), 1, torch.eye(3)[own.classes], 0.0)
        )
        is None
    )


@pytest.mark.parametrize("d", [4, 40])
def test_logme_is_the_evidence_that_scikit_learn_finds(d: int) -> None:
    """Bayesian ridge regression of each class with flat priors; more rows than features, and fewer."""
    x, y = rows_of(5, d=d)
    expected = []
    for c in range(3):
        prior = dict.fromkeys(("alpha_1", "alpha_2", "lambda_1", "lambda_2"), 0.0)
        ridge = BayesianRidge(max_iter=1000, tol=1e-10, compute_score=True, fit_intercept=False, **prior)
        ridge.fit(x.double().numpy(), (y == c).double().numpy())
        expected.append(ridge.scores_[-1] / len(x))
    found = TRANSFERABILITY_MEASURES["logme"](TransferView(x, y, 3, None, 0.0))
    assert found == pytest.approx(float(np.mean(expected)), rel=1e-3 if d < len(x) else 5e-2)


def test_logme_prefers_features_that_tell_classes_apart() -> None:
    own = look(2)
    noise = TransferView(torch.randn(24, 5, generator=torch.Generator().manual_seed(0)), own.classes, 3, None, 0.0)
    sharp = TransferView(torch.nn.functional.one_hot(own.classes, 5).float(), own.classes, 3, None, 0.0)
    evidence, evidence_of_noise = (TRANSFERABILITY_MEASURES["logme"](view) for view in (sharp, noise))
    assert evidence is not None
    assert evidence_of_noise is not None
    assert evidence > evidence_of_noise
    assert TRANSFERABILITY_MEASURES["logme"](TransferView(own.vectors, own.classes, 1, None, 0.0)) is None
    assert TRANSFERABILITY_MEASURES["held_out"](own) == 0.75
