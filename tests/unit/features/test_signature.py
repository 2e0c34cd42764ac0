"""Signatures and the closed-form head against direct computations and scikit-learn."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.covariance import shrunk_covariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor
from torch.nn import functional as F

from continual.features.discriminant import LABEL_SMOOTHING, SHRINKAGES, DiscriminantHead, fit_discriminant
from continual.features.signature import Signature, compute_signature, inverse_shrunk_covariance

SEEDS = st.integers(0, 10_000)


def sample(
    seed: int, *, classes: int = 3, per_class: int = 8, d: int = 5, spread: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Draw rows of correlated clouds around class means, in random order."""
    draw = torch.Generator().manual_seed(seed)
    means, mix = spread * torch.randn(classes, d, generator=draw), torch.randn(d, d, generator=draw)
    labels = torch.arange(classes).repeat_interleave(per_class)
    labels = labels[torch.randperm(len(labels), generator=draw)]
    return means[labels] + torch.randn(len(labels), d, generator=draw) @ mix, labels


def of(seed: int, **shape: int) -> Signature:
    vectors, labels = sample(seed, **shape)
    return compute_signature(vectors, labels, count=int(labels.max()) + 1)


def close(actual: Tensor, expected: object) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=1e-6, atol=1e-8)


@given(SEEDS, st.permutations(range(24)), st.lists(st.integers(0, 24), max_size=4))
def test_signatures_of_parts_add_up_in_any_order(seed: int, order: list[int], cuts: list[int]) -> None:
    vectors, labels = sample(seed)
    whole = compute_signature(vectors, labels, count=3)
    parts = [
        compute_signature(vectors[order[a:b]], labels[order[a:b]], count=3) for a, b in pairwise([0, *sorted(cuts), 24])
    ]
    for name in ("counts", "sums", "moment"):
        close(torch.stack([getattr(part, name) for part in parts]).sum(dim=0), getattr(whole, name))


def test_means_and_scatter_equal_direct_computations() -> None:
    vectors, labels = sample(1)
    signature = compute_signature(vectors, labels, count=3)
    groups = [vectors[labels == c].double().numpy() for c in range(3)]
    close(signature.means, np.stack([group.mean(axis=0) for group in groups]))
    close(signature.scatter, sum((len(g) - 1) * np.cov(g, rowvar=False) for g in groups))
    assert (signature.rows, signature.degrees_of_freedom) == (24, 21)
    assert {signature.counts.dtype, signature.sums.dtype, signature.moment.dtype} == {torch.float64}


def test_scatter_keeps_its_digits_far_from_the_origin() -> None:
    """Second moments cancel where means are large; float64 has digits enough for any hidden state."""
    vectors, labels = sample(2)
    far = compute_signature(vectors.double() + 1000.0, labels, count=3)
    torch.testing.assert_close(far.scatter, compute_signature(vectors, labels, count=3).scatter, rtol=1e-6, atol=1e-5)


def test_signature_survives_bytes() -> None:
    signature = of(3)
    back = Signature.from_bytes(signature.to_bytes())
    assert back.to_bytes() == signature.to_bytes()
    assert torch.equal(back.scatter, signature.scatter)


@pytest.mark.parametrize("gamma", [0.01, 0.3, 1.0])
def test_shrinkage_equals_sklearns(gamma: float) -> None:
    signature = of(4)
    expected = np.linalg.inv(
        shrunk_covariance((signature.scatter / signature.degrees_of_freedom).numpy(), shrinkage=gamma)
    )
    close(inverse_shrunk_covariance(signature.scatter, signature.degrees_of_freedom, gamma), expected)


def test_the_covariance_without_rows_is_the_identity() -> None:
    close(inverse_shrunk_covariance(torch.zeros(3, 3, dtype=torch.float64), 1, 0.1), 10 * np.eye(3))


def only(monkeypatch: pytest.MonkeyPatch, gamma: float) -> None:
    monkeypatch.setattr("continual.features.discriminant.SHRINKAGES", (gamma,))


def overlapping_head(seed: int, *, per_class: int = 8) -> tuple[DiscriminantHead, Tensor, Tensor, Tensor, Tensor]:
    vectors, labels = sample(seed, per_class=2 * per_class, spread=0.8)
    (x, y), (held_out, truth) = (vectors[::2], labels[::2]), (vectors[1::2], labels[1::2].clone())
    truth[::5] = (truth[::5] + 1) % 3  # some are labelled otherwise: no head gets them all
    return fit_discriminant(compute_signature(x, y, count=3), held_out, truth), x, y, held_out, truth


@pytest.mark.parametrize("gamma", SHRINKAGES)
@pytest.mark.parametrize("seed", range(3))
def test_the_closed_form_equals_sklearns_linear_discriminant(
    monkeypatch: pytest.MonkeyPatch, seed: int, gamma: float
) -> None:
    """With equal classes the prior has no effect; scikit-learn divides the scatter by rows, not rows − classes."""
    only(monkeypatch, gamma)
    draw, labels = torch.Generator().manual_seed(seed), torch.arange(3).repeat(8)
    x = torch.randn(24, 5, generator=draw) + torch.randn(3, 5, generator=draw)[labels]
    held_out = torch.randn(40, 5, generator=draw)
    signature = compute_signature(x, labels, count=3)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=gamma).fit(x.double().numpy(), labels.numpy())
    close(signature.means @ inverse_shrunk_covariance(signature.scatter, signature.rows, gamma), reference.coef_)
    head = fit_discriminant(signature, held_out, torch.zeros(40, dtype=torch.long))
    assert head(held_out).argmax(dim=1).tolist() == reference.predict(held_out.double().numpy()).tolist()


def test_the_prior_is_used_where_it_is_better_on_held_out_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two overlapping clouds, nine rows to one: the prior helps on rows held out alike, and harms on balanced ones."""
    only(monkeypatch, 0.1)
    draw = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 180 + [1] * 20)
    signature = compute_signature(torch.randn(200, 2, generator=draw) + labels.unsqueeze(1), labels, count=2)
    precision = inverse_shrunk_covariance(signature.scatter, signature.degrees_of_freedom, 0.1)
    weight = signature.means @ precision
    plain = -0.5 * torch.einsum("cd,cd->c", weight, signature.means)
    log_prior = torch.log(torch.tensor([0.9, 0.1], dtype=torch.float64))

    def bias_difference(truth: Tensor) -> float:
        head = fit_discriminant(signature, torch.randn(len(truth), 2, generator=draw) + truth.unsqueeze(1), truth)
        temperature = float(weight.norm() / head.weight.double().norm())
        return float((head.bias[0] - head.bias[1]) * temperature)

    without = float(plain[0] - plain[1])
    assert bias_difference(labels) == pytest.approx(without + float(log_prior[0] - log_prior[1]), rel=1e-4)
    assert bias_difference(torch.arange(200) % 2) == pytest.approx(without, rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_the_head_is_the_best_candidate_on_held_out_rows(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    head, x, y, held_out, truth = overlapping_head(seed)
    assert head.accuracy == pytest.approx(float((head(held_out).argmax(dim=1) == truth).double().mean()))
    alone = []
    for gamma in SHRINKAGES:
        only(monkeypatch, gamma)
        alone.append(fit_discriminant(compute_signature(x, y, count=3), held_out, truth))
    assert (head.accuracy, -head.loss) == max((candidate.accuracy, -candidate.loss) for candidate in alone)


def test_the_temperature_is_optimal() -> None:
    head, *_, held_out, truth = overlapping_head(5)
    assert 0.0 < head.accuracy < 1.0
    losses = {
        t: float(F.cross_entropy(head(held_out) / t, truth, label_smoothing=LABEL_SMOOTHING))
        for t in (0.8, 0.95, 1.0, 1.05, 1.2)
    }
    assert min(losses, key=losses.__getitem__) == 1.0
    assert losses[1.0] == pytest.approx(head.loss, rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_one_row_per_class_has_no_scatter_in_any_order(seed: int) -> None:
    """Rounding errors of the scatter must not be inverted: the head is that of the nearest mean."""
    generator = torch.Generator().manual_seed(seed)
    vectors, order = torch.randn(20, 8, generator=generator), torch.randperm(20, generator=generator)
    signature = compute_signature(vectors[order], order, count=20)
    assert not signature.scatter.any()
    head = fit_discriminant(signature, vectors, torch.arange(20))
    assert head.accuracy == 1.0
    assert head.weight.abs().max() < 1e4
