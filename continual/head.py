"""The head a task starts from: linear discriminant weights in closed form, temperature fitted on held-out rows.

    W = C⁻¹ μ     b = −½ μᵀ C⁻¹ μ  (+ log prior)     p(c | x) = softmax((W x + b) / temperature)

with μ the class means and C the shared within-class covariance, shrunk. Shrinkage and whether the prior counts are
chosen on held-out rows. Fisher (1936); Friedman (1989), "Regularized Discriminant Analysis".
"""

from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from continual.signature import Signature, shrunk_inverse

SMOOTHING = 0.02
SHRINKAGES = (0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9)


@dataclass(frozen=True)
class ClosedForm:
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


def closed_form(signature: Signature, held_out: Tensor, classes: Tensor) -> ClosedForm:
    """The closed-form head of a signature that answers most held-out vectors [N, D] of the given classes [N] rightly.

    Equally good ones are told apart by their cross entropy.
    """
    scatter, means, freedom = signature.scatter, signature.means, signature.freedom
    log_prior = torch.log(signature.counts / signature.counts.sum())
    candidates = []
    for shrinkage in SHRINKAGES:
        weight = means @ shrunk_inverse(scatter, freedom, shrinkage)
        bias = -0.5 * (weight * means).sum(dim=1)
        for prior in (torch.zeros_like(log_prior), log_prior):
            candidates.append(_tempered(weight, bias + prior, held_out.double(), classes))
    return max(candidates, key=lambda candidate: (candidate.accuracy, -candidate.loss))


def _tempered(weight: Tensor, bias: Tensor, vectors: Tensor, classes: Tensor) -> ClosedForm:
    """The same head divided by the temperature that is best on the held-out rows."""
    logits = F.linear(vectors, weight, bias)

    def loss(log_temperature: float) -> float:
        # Smoothed: where all held-out rows are told apart, the sharpest head would be best and could never be trained.
        return float(F.cross_entropy(logits / torch.e**log_temperature, classes, label_smoothing=SMOOTHING))

    best = minimize_scalar(loss, bounds=(-3.0, 6.0), method="bounded")
    temperature = torch.e ** float(best.x)
    correct = logits.argmax(dim=1) == classes
    return ClosedForm((weight / temperature).float(), (bias / temperature).float(), correct, float(best.fun))
