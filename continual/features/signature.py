"""Additive statistics of a task's rows in some features: what routing, similarity and closed-form heads are made of.

Shapes: N rows, C classes, D dimensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from continual.serialization import deserialize, serialize
from registry.errors import BlobError

ROUNDING_TOLERANCE = 1e-10  # of the second moment: less scatter is none, as with one row per class


@dataclass(frozen=True)
class Signature:
    """Counts n [C], sums s [C, D] and the common second moment M = Σ x xᵀ [D, D], in float64.

    Adding the rows of two signatures adds each of the three, whatever the order of arrival.
    """

    counts: Tensor
    sums: Tensor
    moment: Tensor

    @property
    def rows(self) -> int:
        return int(self.counts.sum())

    @property
    def means(self) -> Tensor:
        """Class means μ = s / n [C, D]."""
        return self.sums / self.counts.unsqueeze(1)

    @property
    def scatter(self) -> Tensor:
        """Within-class scatter Σ (x − μ)(x − μ)ᵀ = M − Σ n μ μᵀ [D, D]; zero where it is nothing but rounding."""
        scatter = self.moment - self.sums.T @ self.means
        spread = scatter.trace() > ROUNDING_TOLERANCE * self.moment.trace()
        return scatter if spread else torch.zeros_like(scatter)

    @property
    def degrees_of_freedom(self) -> int:
        """Degrees of freedom of the scatter: rows less classes, at least one."""
        return max(self.rows - len(self.counts), 1)

    def to_bytes(self) -> bytes:
        return serialize({"counts": self.counts, "sums": self.sums, "moment": self.moment})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Signature":
        """What `to_bytes` wrote. Raises: BlobError, where it is none, or of a newer format."""
        tensors, _ = deserialize(data, what="signature")
        if tensors.keys() != {"counts", "sums", "moment"}:
            raise BlobError(
                f"a signature has counts, sums and moment, and this has {sorted(tensors)}; restore the blob"
            )
        return cls(**tensors)


def compute_signature(vectors: Tensor, classes: Tensor, *, count: int) -> Signature:
    """The signature of vectors [N, D] whose classes [N] are numbers below `count`; every class has a row at least."""
    exact = vectors.double()
    sums = torch.zeros(count, exact.shape[1], dtype=torch.float64).index_add_(0, classes, exact)
    counts = torch.bincount(classes, minlength=count).double()
    return Signature(counts, sums, exact.T @ exact)


def shrink_covariance(scatter: Tensor, freedom: float, shrinkage: float) -> Tensor:
    """The covariance S = scatter / freedom [D, D], shrunk to (1 − γ) S + γ (tr S / D) I.

    Ledoit and Wolf (2004) shrink so; γ is chosen on held-out rows here. A covariance of nothing is the identity's.
    """
    covariance = scatter / freedom
    scale = float(covariance.trace()) / len(covariance) or 1.0
    identity = torch.eye(len(covariance), dtype=covariance.dtype)
    return (1 - shrinkage) * covariance + shrinkage * scale * identity


def inverse_shrunk_covariance(scatter: Tensor, freedom: float, shrinkage: float) -> Tensor:
    """The inverse [D, D] of a shrunk covariance."""
    return torch.cholesky_inverse(torch.linalg.cholesky(shrink_covariance(scatter, freedom, shrinkage)))
