"""What a task's delta itself says of an input: how sure it is of its answer, and how well its features fit.

    fit(x) = (−½ min_c (x − μ_c)ᵀ C⁻¹ (x − μ_c) − a) / b

with class means μ and shared shrunk covariance C in the delta's own features, and a, b the mean and the standard
deviation of that on held-out rows of the task: 0 for an input like those, far below for one of another kind.

Shapes: C classes, D hidden size, N rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from continual.features.signature import compute_signature, inverse_shrunk_covariance

SHRINKAGE = 0.1
_PREFIX = "evidence/"


@dataclass(frozen=True)
class FitStatistics:
    """means [C, D] · precision C⁻¹ [D, D] · centre, spread: a and b · sure: mean log probability of the answers to
    held-out rows, in nats · own [H]: fit of the held-out rows that are kept."""

    means: Tensor
    precision: Tensor
    centre: Tensor
    spread: Tensor
    mean_log_prob: Tensor
    held_out_fit: Tensor

    def fit(self, vectors: Tensor) -> Tensor:
        """fit(x) [N] of the delta's features [N, D], in standard deviations."""
        return (_likelihood(vectors, self.means, self.precision) - self.centre) / self.spread

    def to_tensors(self) -> dict[str, Tensor]:
        return {f"{_PREFIX}{key}": getattr(self, field) for key, field in _FIELDS.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "FitStatistics | None":
        """What `tensors` gave; None where there is nothing."""
        if not any(name.startswith(_PREFIX) for name in tensors):
            return None
        return cls(**{field: tensors[f"{_PREFIX}{key}"] for key, field in _FIELDS.items()})


# The names of a blob's tensors, which older releases read too, and the fields that hold them.
_FIELDS = {
    "means": "means",
    "precision": "precision",
    "centre": "centre",
    "spread": "spread",
    "sure": "mean_log_prob",
    "own": "held_out_fit",
}


def fit_statistics(rows: Tensor, classes: Tensor, *, count: int, held_out: Tensor, sure: Tensor) -> FitStatistics:
    """The evidence of a delta from train rows [N, D] and held-out rows [H, D] in its features.

    sure [H]: log probabilities of its answers to the held-out rows, where its kind has any.
    """
    own = compute_signature(rows, classes, count=count)
    means = own.means.float()
    precision = inverse_shrunk_covariance(own.scatter, own.degrees_of_freedom, SHRINKAGE).float()
    fits = _likelihood(held_out, means, precision)
    centre, spread = fits.mean(), fits.std(correction=0).clamp_min(1e-6)
    surely = sure.mean() if len(sure) else torch.zeros(())
    return FitStatistics(means, precision, centre, spread, surely, (fits - centre) / spread)


def _likelihood(vectors: Tensor, means: Tensor, precision: Tensor) -> Tensor:
    """−½ of the squared distance to the nearest mean [N]."""
    whitener = torch.linalg.cholesky(precision)
    return -0.5 * torch.cdist(vectors @ whitener, means @ whitener).square().amin(dim=1)
