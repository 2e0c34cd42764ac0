"""Signatures: additive statistics of a task's rows, for routing, similarity and heads.

Shapes: N rows, C classes, D dimensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from continual.serialization import deserialize, serialize
from registry.errors import BlobError

# Share of the second moment below which scatter counts as rounding, as with one row per class.
ROUNDING_TOLERANCE = 1e-10
JITTERS = (1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2)  # parts of the mean variance


@dataclass(frozen=True)
class Signature:
    """Counts, sums and second moment of rows x with classes, in float64.

    They are additive: the signature of two sets of rows together has the sums of their three parts, in any order.

    Attributes:
        counts: Rows n of each class [C].
        sums: Sums s of each class [C, D].
        moment: Common second moment M = Σ x xᵀ [D, D].
    """

    counts: Tensor
    sums: Tensor
    moment: Tensor

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.counts.sum())

    @property
    def means(self) -> Tensor:
        """Class means μ = s / n [C, D]."""
        return self.sums / self.counts.unsqueeze(1)

    @property
    def scatter(self) -> Tensor:
        """Within-class scatter Σ (x − μ)(x − μ)ᵀ = M − Σ n μ μᵀ [D, D]; zero where it is only rounding."""
        scatter = self.moment - self.sums.T @ self.means
        return without_rounding(scatter, float(self.moment.trace()))

    def leading_scatter(self, size: int) -> Tensor:
        """Return the within-class scatter [L, L] of the L leading dimensions, at most `size`."""
        return self.scatter[:size, :size]

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are finite."""
        return all(bool(part.isfinite().all()) for part in (self.counts, self.sums, self.moment))

    @property
    def degrees_of_freedom(self) -> int:
        """Degrees of freedom of the scatter: rows minus classes, at least one."""
        return max(self.rows - len(self.counts), 1)

    def to_bytes(self) -> bytes:
        """Serialize the signature; equal signatures give equal bytes."""
        return serialize({"counts": self.counts, "sums": self.sums, "moment": self.moment})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Signature":
        """Deserialize the bytes that `to_bytes` returned.

        Raises:
            BlobError: The bytes are no signature, or of a newer format.
        """
        tensors, _ = deserialize(data, what="signature")
        if tensors.keys() != {"counts", "sums", "moment"}:
            raise BlobError(
                f"a signature has counts, sums and moment, and this has {sorted(tensors)}; restore the blob"
            )
        return cls(**tensors)


def compute_signature(vectors: Tensor, classes: Tensor, *, count: int) -> Signature:
    """Compute the signature of vectors with classes.

    Args:
        vectors: Vectors [N, D].
        classes: Class of each vector [N], below `count`; every class has at least one.
        count: Number of classes C.
    """
    vectors = vectors.double()
    sums = torch.zeros(count, vectors.shape[1], dtype=torch.float64).index_add_(0, classes, vectors)
    counts = torch.bincount(classes, minlength=count).double()
    return Signature(counts, sums, vectors.T @ vectors)


def without_rounding(scatter: Tensor, moment_trace: float) -> Tensor:
    """Return a scatter [D, D], or zeros where it is only rounding of the difference that it was computed as.

    Args:
        scatter: M − n μ μᵀ, which rounding may leave indefinite where all rows are the same.
        moment_trace: The trace of M.
    """
    is_significant = float(scatter.trace()) > ROUNDING_TOLERANCE * moment_trace
    return scatter if is_significant else torch.zeros_like(scatter)


def cholesky_factor(matrix: Tensor) -> Tensor:
    """Return the lower Cholesky factor [D, D] of a symmetric matrix that is positive definite up to rounding.

    Where it is not, the least jitter of `JITTERS` that makes it so is added to its diagonal, in parts of the diagonal's
    mean.

    Args:
        matrix: Symmetric matrix [D, D], positive semidefinite but for rounding.

    Raises:
        torch.linalg.LinAlgError: It is far from it, or holds numbers that are not finite.
    """
    factor: Tensor
    factor, failed_at = torch.linalg.cholesky_ex(matrix)
    scale = float(matrix.diagonal().abs().mean()) or 1.0
    for jitter in JITTERS:
        if not failed_at:
            return factor
        jittered = matrix + jitter * scale * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        factor, failed_at = torch.linalg.cholesky_ex(jittered)
    if failed_at:
        factor = torch.linalg.cholesky(matrix)  # raises the error
    return factor


def shrink_covariance(scatter: Tensor, degrees_of_freedom: float, shrinkage: float) -> Tensor:
    """Shrink the covariance S of a scatter towards a multiple of the identity.

        (1 − γ) S + γ (tr S / D) I     S = scatter / degrees_of_freedom

    Ledoit and Wolf (2004), "A Well-conditioned Estimator for Large-dimensional Covariance Matrices". They estimate γ;
    callers here choose it on held-out rows. Of a zero scatter, and of one that rounding made negative, the result is
    γ I.

    Args:
        scatter: Scatter [D, D].
        degrees_of_freedom: Its degrees of freedom.
        shrinkage: γ, from 0 to 1.

    Returns:
        The shrunk covariance [D, D].
    """
    covariance = scatter / degrees_of_freedom
    scale = float(covariance.trace()) / len(covariance)
    if scale <= 0:  # no row differs from its class's mean
        covariance, scale = torch.zeros_like(covariance), 1.0
    identity = torch.eye(len(covariance), dtype=covariance.dtype)
    return (1 - shrinkage) * covariance + shrinkage * scale * identity


def inverse_shrunk_covariance(scatter: Tensor, degrees_of_freedom: float, shrinkage: float) -> Tensor:
    """Return the inverse [D, D] of the shrunk covariance of a scatter [D, D]; see `shrink_covariance`."""
    return torch.cholesky_inverse(cholesky_factor(shrink_covariance(scatter, degrees_of_freedom, shrinkage)))
