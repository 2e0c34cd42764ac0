"""The start of a classifier's head: logistic regressions of several strengths, pooled with the discriminant."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from continual.features.discriminant import LinearHead, fit_discriminant
from continual.features.logistic_regression import (
    STRENGTHS,
    average_heads,
    fit_linear_head,
    fit_logistic_regressions,
)
from continual.features.signature import compute_signature


def draw_rows(classes: int, rows: int, *, seed: int = 0, skewed: bool = False) -> tuple[Tensor, Tensor]:
    """Draw vectors [rows, 8] of clouds around the means of classes in turn; skewed, no Gaussian fits them."""
    draw = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, 8, generator=torch.Generator().manual_seed(7))
    labels = torch.arange(rows) % classes
    noise = torch.randn(rows, 8, generator=draw)
    return means[labels] + (noise.exp() - 1.6 if skewed else noise), labels


@pytest.mark.parametrize("classes", [2, 3])
def test_each_regression_is_at_the_minimum_of_its_objective(classes: int) -> None:
    vectors, labels = draw_rows(classes, 60)
    mean = vectors.double().mean(dim=0)
    deviation = (vectors.double() - mean).square().mean().sqrt()
    for strength, (weight, bias) in zip(STRENGTHS, fit_logistic_regressions(vectors, labels), strict=True):
        inputs = (vectors.double() - mean) / deviation
        free = (weight * deviation).requires_grad_(), (bias + weight @ mean).requires_grad_()
        penalty = free[0].square().sum() / (2 * strength) * (2 if classes == 2 else 1)  # of the difference of two rows
        loss = F.cross_entropy(F.linear(inputs, *free), labels, reduction="sum") + penalty
        for gradient in torch.autograd.grad(loss, free):
            assert gradient.abs().max() < 0.05, strength


def test_the_order_of_rows_does_not_matter() -> None:
    (vectors, labels), (held_out, classes) = draw_rows(3, 60), draw_rows(3, 30, seed=1)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    first = fit_linear_head(vectors, labels, held_out, classes, count=3)
    second = fit_linear_head(vectors[order], labels[order], held_out, classes, count=3)
    torch.testing.assert_close(first.weight, second.weight, rtol=1e-5, atol=1e-6)
    again = fit_linear_head(vectors, labels, held_out, classes, count=3)
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.bias, again.bias)


def test_rows_that_no_gaussian_fits_are_answered_better_than_by_the_discriminant() -> None:
    train, held_out, test = (
        draw_rows(4, rows, seed=seed, skewed=True) for seed, rows in ((0, 200), (1, 40), (2, 2000))
    )
    discriminant = fit_discriminant(compute_signature(*train, count=4), *held_out)
    pooled = fit_linear_head(*train, *held_out, count=4)
    accuracies = [float((head(test[0]).argmax(dim=1) == test[1]).double().mean()) for head in (discriminant, pooled)]
    assert accuracies[1] > accuracies[0] + 0.01


def test_averaged_heads_count_the_same_whatever_their_scale() -> None:
    vectors, _ = draw_rows(3, 30)
    draw = torch.Generator().manual_seed(5)
    first, second = ((torch.randn(3, 8, generator=draw), torch.randn(3, generator=draw)) for _ in range(2))
    louder: LinearHead = (100 * second[0], 100 * second[1])
    for one, other in zip(average_heads(first, second, vectors), average_heads(first, louder, vectors), strict=True):
        torch.testing.assert_close(one, other)
