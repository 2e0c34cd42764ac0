"""Closed-form heads: linear discriminants with a temperature fitted on held-out rows.

    W = C⁻¹ μ     b = −½ μᵀ C⁻¹ μ  (+ log prior)     p(c | x) = softmax((W x + b) / temperature)

with μ the class means and C the shared within-class covariance, shrunk. Shrinkage and whether the prior counts are
chosen on held-out rows. Fisher (1936); Friedman (1989), "Regularized Discriminant Analysis".

Shapes: N held-out rows, C classes, D dimensions.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from continual.features.signature import Signature, inverse_shrunk_covariance

LinearHead = tuple[Tensor, Tensor]  # weight [C, D] and bias [C]

LABEL_SMOOTHING = 0.02
SHRINKAGES = (0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9)


@dataclass(frozen=True)
class DiscriminantHead:
    """A fitted linear head, with the temperature folded in, and its results on the held-out rows.

    Attributes:
        weight: Weight [C, D], float32.
        bias: Bias [C], float32.
        correct: The held-out rows that it answers rightly [N].
        loss: Cross entropy on the held-out rows, in nats, with smoothed labels.
    """

    weight: Tensor
    bias: Tensor
    correct: Tensor
    loss: float

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return logits [N, C] of vectors [N, D]."""
        return F.linear(vectors, self.weight, self.bias)

    @property
    def accuracy(self) -> float:
        """Share of the held-out rows that it answers rightly."""
        return float(self.correct.double().mean())


def fit_discriminant(signature: Signature, held_out: Tensor, classes: Tensor) -> DiscriminantHead:
    """Fit the closed-form head of a signature, with the best shrinkage and prior on held-out rows.

    Args:
        signature: Signature of the train rows, with C classes and D dimensions.
        held_out: Held-out vectors [N, D].
        classes: Their classes [N].

    Returns:
        The head that answers most held-out rows rightly; among equals, the one of least cross entropy.
    """
    scatter, means, degrees_of_freedom = signature.scatter, signature.means, signature.degrees_of_freedom
    log_prior = torch.log(signature.counts / signature.counts.sum())
    candidates = []
    for shrinkage in SHRINKAGES:
        weight = means @ inverse_shrunk_covariance(scatter, degrees_of_freedom, shrinkage)
        bias = -0.5 * (weight * means).sum(dim=1)
        for prior in (torch.zeros_like(log_prior), log_prior):
            candidates.append(fit_temperature(weight, bias + prior, held_out.double(), classes))
    return max(candidates, key=lambda candidate: (candidate.accuracy, -candidate.loss))


def fit_temperature(weight: Tensor, bias: Tensor, vectors: Tensor, classes: Tensor) -> DiscriminantHead:
    """Divide a head by the temperature of least cross entropy, with smoothed labels, on held-out rows.

    Args:
        weight: Weight [C, D].
        bias: Bias [C].
        vectors: Held-out vectors [N, D], of the weight's type.
        classes: Their classes [N].
    """
    logits = F.linear(vectors, weight, bias)
    temperature, loss = best_temperature(logits, classes)
    correct = logits.argmax(dim=1) == classes
    return DiscriminantHead((weight / temperature).float(), (bias / temperature).float(), correct, loss)


def best_temperature(logits: Tensor, classes: Tensor) -> tuple[float, float]:
    """Return the temperature of least cross entropy, with smoothed labels, of logits [N, C], and that cross entropy.

    Args:
        logits: Logits [N, C].
        classes: The classes [N].
    """

    def loss(log_temperature: float) -> float:
        # Smoothed: where every held-out row is right, the sharpest head would be best, and it has no gradient.
        return float(F.cross_entropy(logits / torch.e**log_temperature, classes, label_smoothing=LABEL_SMOOTHING))

    best = minimize_scalar(loss, bounds=(-3.0, 6.0), method="bounded")
    return torch.e ** float(best.x), float(best.fun)


def combine_heads(first: LinearHead, second: LinearHead, vectors: Tensor, classes: Tensor) -> tuple[LinearHead, Tensor]:
    """Fit the head a · first + b · second, with a, b ≥ 0, of least cross entropy on held-out rows.

    It is a logarithmic opinion pool: Genest and Zidek (1986), "Combining Probability Distributions". Where the second
    head is no evidence of these classes, b is 0.

    Args:
        first: Weight [C, D] and bias [C].
        second: Weight [C, D] and bias [C].
        vectors: Held-out vectors [N, D].
        classes: Their classes [N].

    Returns:
        The combined head, and the rows that are answered rightly [N], float64. Each half of the rows is judged by
        weights fitted on the other half, so that the fit does not flatter itself.
    """
    logits = torch.stack([F.linear(vectors.double(), *(part.double() for part in head)) for head in (first, second)])
    correct = torch.zeros(len(classes), dtype=torch.float64)
    for half in (torch.arange(len(classes)) % 2 == parity for parity in (0, 1)):
        a, b = fit_pool_weights(logits[:, ~half], classes[~half])
        correct[half] = ((a * logits[0] + b * logits[1])[half].argmax(dim=1) == classes[half]).double()
    a, b = fit_pool_weights(logits, classes)
    return (a * first[0] + b * second[0], a * first[1] + b * second[1]), correct


def fit_pool_weights(logits: Tensor, classes: Tensor) -> tuple[float, float]:
    """Fit the weights a, b ≥ 0 of two heads' logits, of least cross entropy; (1, 0) where there are no rows.

    Args:
        logits: The logits of both for the same rows [2, N, C].
        classes: Their classes [N].
    """
    if not len(classes):
        return 1.0, 0.0
    scale = float(logits[0].std() / logits[1].std().clamp_min(1e-12))

    def loss_and_gradient(weights: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.tensor(weights, requires_grad=True)
        combined = free[0] * logits[0] + free[1] * scale * logits[1]
        loss = F.cross_entropy(combined, classes, label_smoothing=LABEL_SMOOTHING)
        (gradient,) = torch.autograd.grad(loss, free)
        return float(loss.detach()), gradient.numpy()

    start = np.array([1.0, 0.0])
    a, b = minimize(loss_and_gradient, start, jac=True, bounds=[(0, None)] * 2, method="L-BFGS-B").x
    return float(a), float(b) * scale
