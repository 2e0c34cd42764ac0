"""Signatures and the closed-form head against the same numbers computed the long way."""

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
    """Rows in correlated clouds around means of their own, in random order."""
    draw = torch.Generator().manual_seed(seed)
    means, mix = spread * torch.randn(classes, d, generator=draw), torch.randn(d, d, generator=draw)
    labels = torch.arange(classes).repeat_interleave(per_class)
    labels = labels[torch.randperm(len(labels), generator=draw)]
    return means[labels] + torch.randn(len(labels), d, generator=draw) @ mix, labels


def of(seed: int, **shape: int) -> Signature:
    vectors, labels = sample(seed, **shape)
    return compute_signature(vectors, labels, count=int(labels.max()) + 1)


def close(found: Tensor, expected: object) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=1e-6, atol=1e-8)


@given(SEEDS, st.permutations(range(24)), st.lists(st.integers(0, 24), max_size=4))
def test_signatures_add_up_whatever_the_order_and_the_cuts(seed: int, order: list[int], cuts: list[int]) -> None:
    vectors, labels = sample(seed)
    whole = compute_signature(vectors, labels, count=3)
    parts = [
        compute_signature(vectors[order[a:b]], labels[order[a:b]], count=3) for a, b in pairwise([0, *sorted(cuts), 24])
    ]
    for name in ("counts", "sums", "moment"):
        close(torch.stack([getattr(part, name) for part in parts]).sum(dim=0), getattr(whole, name))


def test_means_and_scatter_are_the_long_way_round() -> None:
    vectors, labels = sample(1)
    found = compute_signature(vectors, labels, count=3)
    groups = [vectors[labels == c].double().numpy() for c in range(3)]
    close(found.means, np.stack([group.mean(axis=0) for group in groups]))
    close(found.scatter, sum((len(g) - 1) * np.cov(g, rowvar=False) for g in groups))
    assert (found.rows, found.degrees_of_freedom) == (24, 21)
    assert {found.counts.dtype, found.sums.dtype, found.moment.dtype} == {torch.float64}


def test_scatter_keeps_its_digits_far_from_the_origin() -> None:
    """Second moments cancel where means are large; float64 leaves digits enough for any hidden state."""
    vectors, labels = sample(2)
    far = compute_signature(vectors.double() + 1000.0, labels, count=3)
    torch.testing.assert_close(far.scatter, compute_signature(vectors, labels, count=3).scatter, rtol=1e-6, atol=1e-5)


def test_signature_survives_bytes() -> None:
    own = of(3)
    back = Signature.from_bytes(own.to_bytes())
    assert back.to_bytes() == own.to_bytes()
    assert torch.equal(back.scatter, own.scatter)


@pytest.mark.parametrize("gamma", [0.01, 0.3, 1.0])
def test_shrinking_is_sklearns(gamma: float) -> None:
    own = of(4)
    expected = np.linalg.inv(shrunk_covariance((own.scatter / own.degrees_of_freedom).numpy(), shrinkage=gamma))
    close(inverse_shrunk_covariance(own.scatter, own.degrees_of_freedom, gamma), expected)


def test_a_covariance_of_nothing_is_the_identity() -> None:
    close(inverse_shrunk_covariance(torch.zeros(3, 3, dtype=torch.float64), 1, 0.1), 10 * np.eye(3))


def only(monkeypatch: pytest.MonkeyPatch, gamma: float) -> None:
    monkeypatch.setattr("continual.features.discriminant.SHRINKAGES", (gamma,))


def overlapping_head(seed: int, *, per_class: int = 8) -> tuple[DiscriminantHead, Tensor, Tensor, Tensor, Tensor]:
    vectors, labels = sample(seed, per_class=2 * per_class, spread=0.8)
    (x, y), (held, truth) = (vectors[::2], labels[::2]), (vectors[1::2], labels[1::2].clone())
    truth[::5] = (truth[::5] + 1) % 3  # some are labelled otherwise: no head gets them all
    return fit_discriminant(compute_signature(x, y, count=3), held, truth), x, y, held, truth


@pytest.mark.parametrize("gamma", SHRINKAGES)
@pytest.mark.parametrize("seed", range(3))
def test_closed_form_is_sklearns_linear_discriminant(monkeypatch: pytest.MonkeyPatch, seed: int, gamma: float) -> None:
    """Equal classes, so that the prior says nothing; scikit-learn divides the scatter by rows, not rows − classes."""
    only(monkeypatch, gamma)
    draw, labels = torch.Generator().manual_seed(seed), torch.arange(3).repeat(8)
    x = torch.randn(24, 5, generator=draw) + torch.randn(3, 5, generator=draw)[labels]
    held = torch.randn(40, 5, generator=draw)
    own = compute_signature(x, labels, count=3)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=gamma).fit(x.double().numpy(), labels.numpy())
    close(own.means @ inverse_shrunk_covariance(own.scatter, own.rows, gamma), theirs.coef_)
    head = fit_discriminant(own, held, torch.zeros(40, dtype=torch.long))
    assert head(held).argmax(dim=1).tolist() == theirs.predict(held.double().numpy()).tolist()


def test_the_prior_counts_where_it_is_better_on_held_out_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clouds that overlap, nine rows to one: held out alike the prior helps, held out evenly it harms."""
    only(monkeypatch, 0.1)
    draw = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 180 + [1] * 20)
    own = compute_signature(torch.randn(200, 2, generator=draw) + labels.unsqueeze(1), labels, count=2)
    precision = inverse_shrunk_covariance(own.scatter, own.degrees_of_freedom, 0.1)
    weight = own.means @ precision
    plain = -0.5 * torch.einsum("cd,cd->c", weight, own.means)
    log_prior = torch.log(torch.tensor([0.9, 0.1], dtype=torch.float64))

    def bias_difference(truth: Tensor) -> float:
        head = fit_discriminant(own, torch.randn(len(truth), 2, generator=draw) + truth.unsqueeze(1), truth)
        temperature = float(weight.norm() / head.weight.double().norm())
        return float((head.bias[0] - head.bias[1]) * temperature)

    without = float(plain[0] - plain[1])
    assert bias_difference(labels) == pytest.approx(without + float(log_prior[0] - log_prior[1]), rel=1e-4)
    assert bias_difference(torch.arange(200) % 2) == pytest.approx(without, rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_the_head_is_the_best_of_all_on_held_out_rows(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    head, x, y, held, truth = overlapping_head(seed)
    assert head.accuracy == pytest.approx(float((head(held).argmax(dim=1) == truth).double().mean()))
    alone = []
    for gamma in SHRINKAGES:
        only(monkeypatch, gamma)
        alone.append(fit_discriminant(compute_signature(x, y, count=3), held, truth))
    assert (head.accuracy, -head.loss) == max((one.accuracy, -one.loss) for one in alone)


def test_the_temperature_is_the_best_there_is() -> None:
    head, *_, held, truth = overlapping_head(5)
    assert 0.0 < head.accuracy < 1.0
    losses = {
        t: float(F.cross_entropy(head(held) / t, truth, label_smoothing=LABEL_SMOOTHING))
        for t in (0.8, 0.95, 1.0, 1.05, 1.2)
    }
    assert min(losses, key=losses.__getitem__) == 1.0
    assert losses[1.0] == pytest.approx(head.loss, rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_one_row_per_class_has_no_scatter_in_any_order(seed: int) -> None:
    """What rounding leaves of it must not be inverted: the head is then that of the nearest mean."""
    generator = torch.Generator().manual_seed(seed)
    vectors, order = torch.randn(20, 8, generator=generator), torch.randperm(20, generator=generator)
    own = compute_signature(vectors[order], order, count=20)
    assert not own.scatter.any()
    head = fit_discriminant(own, vectors, torch.arange(20))
    assert head.accuracy == 1.0
    assert head.weight.abs().max() < 1e4
