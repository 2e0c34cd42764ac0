"""Evidence from a delta that an input is its task's: confidence of the answer, fit of the features.

    fit(x) = (−½ min_c (x − μ_c)ᵀ C⁻¹ (x − μ_c) − a) / b

with class means μ and shared shrunk covariance C in the delta's own features, and a, b the mean and the standard
deviation of the numerator's first term on held-out rows of the task: 0 for an input like those, far below for one of
another kind.

Shapes: C classes, D hidden size, N rows, H held-out rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from continual.features.signature import cholesky_factor, compute_signature, inverse_shrunk_covariance

SHRINKAGE = 0.1
_PREFIX = "evidence/"


@dataclass(frozen=True)
class FitStatistics:
    """Statistics of a task's rows in the features of its own delta.

    Attributes:
        means: Class means [C, D].
        precision: Inverse C⁻¹ [D, D] of the shared shrunk covariance.
        centre: Mean a of the unnormalised fit on held-out rows, a scalar.
        spread: Its standard deviation b, a scalar.
        mean_log_prob: Mean log-probability of the answers to held-out rows in nats, a scalar.
        held_out_fit: Fit [H] of the stored held-out rows.
    """

    means: Tensor
    precision: Tensor
    centre: Tensor
    spread: Tensor
    mean_log_prob: Tensor
    held_out_fit: Tensor

    def fit(self, vectors: Tensor) -> Tensor:
        """Compute the fit [N] of vectors [N, D] in the delta's features, in standard deviations."""
        return (_log_density(vectors, self.means, self.precision) - self.centre) / self.spread

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the statistics under the names they have in a blob.

        Returns:
            `evidence/means` [C, D], `evidence/precision` [D, D], `evidence/own` [H], the held-out fit; and the scalars
            `evidence/centre`, `evidence/spread` and `evidence/sure`, the mean log-probability.
        """
        return {f"{_PREFIX}{key}": getattr(self, field) for key, field in _FIELDS.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "FitStatistics | None":
        """Restore the statistics from a blob's tensors; None where the blob holds none.

        Args:
            tensors: By name, with the names and shapes of `to_tensors`; others, of any shape, are not read.
        """
        if not any(name.startswith(_PREFIX) for name in tensors):
            return None
        return cls(**{field: tensors[f"{_PREFIX}{key}"] for key, field in _FIELDS.items()})


# Names of a blob's tensors, which older releases read too, and the fields that hold them.
_FIELDS = {
    "means": "means",
    "precision": "precision",
    "centre": "centre",
    "spread": "spread",
    "sure": "mean_log_prob",
    "own": "held_out_fit",
}


def fit_statistics(rows: Tensor, classes: Tensor, *, count: int, held_out: Tensor, log_probs: Tensor) -> FitStatistics:
    """Compute the statistics of a task's rows in the features of its delta.

    Args:
        rows: Train rows [N, D].
        classes: Their classes [N], numbers below `count`.
        count: Number of classes C.
        held_out: Held-out rows [H, D].
        log_probs: Log-probabilities [H] of the delta's answers to the held-out rows; empty for kinds without any.

    Returns:
        Class means, precision, and the distribution of fit and confidence on the held-out rows.
    """
    signature = compute_signature(rows, classes, count=count)
    means = signature.means.float()
    precision = inverse_shrunk_covariance(signature.scatter, signature.degrees_of_freedom, SHRINKAGE).float()
    densities = _log_density(held_out, means, precision)
    centre, spread = densities.mean(), densities.std(correction=0).clamp_min(1e-6)
    mean_log_prob = log_probs.mean() if len(log_probs) else torch.zeros(())
    return FitStatistics(means, precision, centre, spread, mean_log_prob, (densities - centre) / spread)


def _log_density(vectors: Tensor, means: Tensor, precision: Tensor) -> Tensor:
    """Compute −½ of the squared distance to the nearest mean [N]: a log-density up to a constant."""
    whitener = cholesky_factor(precision)
    return -0.5 * torch.cdist(vectors @ whitener, means @ whitener).square().amin(dim=1)
