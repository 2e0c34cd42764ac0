"""The head a task starts from: linear discriminant weights in closed form, temperature fitted on held-out rows.

    W = C⁻¹ μ     b = −½ μᵀ C⁻¹ μ  (+ log prior)     p(c | x) = softmax((W x + b) / temperature)

with μ the class means and C the shared within-class covariance, shrunk. Shrinkage and whether the prior counts are
chosen on held-out rows. Fisher (1936); Friedman (1989), "Regularized Discriminant Analysis".
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
    """Weight [C, D] and bias [C], ready to use, and how they did on the held-out rows.

    correct: which held-out rows they answer rightly [N] · loss: cross entropy there, in nats, labels smoothed.
    """

    weight: Tensor
    bias: Tensor
    correct: Tensor
    loss: float

    def __call__(self, vectors: Tensor) -> Tensor:
        """Logits [N, C] of vectors [N, D]."""
        return F.linear(vectors, self.weight, self.bias)

    @property
    def accuracy(self) -> float:
        return float(self.correct.double().mean())


def fit_discriminant(signature: Signature, held_out: Tensor, classes: Tensor) -> DiscriminantHead:
    """The closed-form head of a signature that answers most held-out vectors [N, D] of the given classes [N] rightly.

    Equally good ones are told apart by their cross entropy.
    """
    scatter, means, freedom = signature.scatter, signature.means, signature.degrees_of_freedom
    log_prior = torch.log(signature.counts / signature.counts.sum())
    candidates = []
    for shrinkage in SHRINKAGES:
        weight = means @ inverse_shrunk_covariance(scatter, freedom, shrinkage)
        bias = -0.5 * (weight * means).sum(dim=1)
        for prior in (torch.zeros_like(log_prior), log_prior):
            candidates.append(_tempered(weight, bias + prior, held_out.double(), classes))
    return max(candidates, key=lambda candidate: (candidate.accuracy, -candidate.loss))


def combine_heads(own: LinearHead, other: LinearHead, vectors: Tensor, classes: Tensor) -> tuple[LinearHead, Tensor]:
    """The head a · own + b · other, a, b ≥ 0, of least cross entropy on held-out vectors [N, D] of given classes [N].

    And which of the vectors it answers rightly [N], each by weights that were fitted without its half of them, so that
    fitting does not flatter itself. A logarithmic opinion pool: Genest and Zidek (1986), "Combining Probability
    Distributions". Where the other says nothing of these classes, b is 0.
    """
    both = torch.stack([F.linear(vectors.double(), *(part.double() for part in head)) for head in (own, other)])
    correct = torch.zeros(len(classes), dtype=torch.float64)
    for half in (torch.arange(len(classes)) % 2 == side for side in (0, 1)):
        a, b = _weighed(both[:, ~half], classes[~half])
        correct[half] = ((a * both[0] + b * both[1])[half].argmax(dim=1) == classes[half]).double()
    a, b = _weighed(both, classes)
    return (a * own[0] + b * other[0], a * own[1] + b * other[1]), correct


def _weighed(both: Tensor, classes: Tensor) -> tuple[float, float]:
    """The weights of two heads' logits [2, N, C]: the first alone where there are no rows to say otherwise."""
    if not len(classes):
        return 1.0, 0.0
    scale = float(both[0].std() / both[1].std().clamp_min(1e-12))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.tensor(weights, requires_grad=True)
        found = F.cross_entropy(free[0] * both[0] + free[1] * scale * both[1], classes, label_smoothing=LABEL_SMOOTHING)
        (slope,) = torch.autograd.grad(found, free)
        return float(found.detach()), slope.numpy()

    a, b = minimize(loss, np.array([1.0, 0.0]), jac=True, bounds=[(0, None)] * 2, method="L-BFGS-B").x
    return float(a), float(b) * scale


def _tempered(weight: Tensor, bias: Tensor, vectors: Tensor, classes: Tensor) -> DiscriminantHead:
    """The same head divided by the temperature that is best on the held-out rows."""
    logits = F.linear(vectors, weight, bias)

    def loss(log_temperature: float) -> float:
        # Smoothed: where all held-out rows are told apart, the sharpest head would be best and could never be trained.
        return float(F.cross_entropy(logits / torch.e**log_temperature, classes, label_smoothing=LABEL_SMOOTHING))

    best = minimize_scalar(loss, bounds=(-3.0, 6.0), method="bounded")
    temperature = torch.e ** float(best.x)
    correct = logits.argmax(dim=1) == classes
    return DiscriminantHead((weight / temperature).float(), (bias / temperature).float(), correct, float(best.fun))
