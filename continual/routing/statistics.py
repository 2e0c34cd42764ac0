"""Statistics of one task for routing: class means and scatter in random features, and held-out rows.

Shapes: C classes, M width of features, R rank, H held-out rows, D hidden size, N rows.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from scipy.linalg import eigh
from torch import Tensor

from continual.features.random_features import FrozenFeatures
from continual.routing.evidence import FitStatistics
from continual.serialization import deserialize, serialize
from registry.errors import BlobError

SCATTER_RANK = 512  # principal axes of a task's scatter: with 256 of 2,048 a router errs measurably more
HELD_OUT = 128  # rows of a task


class TaskMoments(Protocol):
    """The moments of one task that routing sums are made of; signatures have them too."""

    @property
    def counts(self) -> Tensor:
        """Class sizes n [C]."""
        ...

    @property
    def means(self) -> Tensor:
        """Class means μ [C, M]."""
        ...

    def leading_scatter(self, size: int) -> Tensor:
        """Within-class scatter [L, L] of the L leading features, at most `size`."""
        ...

    @property
    def degrees_of_freedom(self) -> int:
        """Degrees of freedom of the scatter."""
        ...


@dataclass(frozen=True)
class RoutingStatistics:
    """One task in wide frozen features, with its scatter FᵀF + residual_variance · I in low rank.

    Attributes:
        counts: Class sizes [C].
        means: Class means [C, M].
        factor: F [R, M], the largest principal axes of the scatter.
        residual_variance: Mean variance along all other axes, a scalar.
        held_out: H validation rows, pooled [H, D] and in random features [H, M].
        evidence: Statistics of the task in its delta's features, None without a delta that was trained here.
    """

    counts: Tensor
    means: Tensor
    factor: Tensor
    residual_variance: Tensor
    held_out: FrozenFeatures
    evidence: FitStatistics | None = None

    @property
    def scatter(self) -> Tensor:
        """Within-class scatter [M, M] in float64."""
        return self.leading_scatter(self.factor.shape[1]).double()

    def leading_scatter(self, size: int) -> Tensor:
        """Return the within-class scatter [L, L] of the L leading features, at most `size`."""
        factor = self.factor[:, :size].float()
        scatter = factor.T @ factor
        scatter.diagonal().add_(self.residual_variance)
        return scatter

    @property
    def degrees_of_freedom(self) -> int:
        """Degrees of freedom of the scatter: rows less classes, at least one."""
        return max(int(self.counts.sum()) - len(self.counts), 1)

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are finite."""
        evidence = self.evidence.to_tensors().values() if self.evidence else ()
        moments = (self.counts, self.means, self.factor, self.residual_variance)
        rows = (self.held_out.pooled, self.held_out.random_features)
        return all(bool(part.isfinite().all()) for part in (*moments, *rows, *evidence))

    def to_bytes(self) -> bytes:
        """Serialize the statistics as a blob."""
        sums = {key: getattr(self, field) for key, field in _SUMS.items()}
        rows = {key: getattr(self.held_out, field) for key, field in _HELD_OUT.items()}
        return serialize({**sums, **rows, **(self.evidence.to_tensors() if self.evidence else {})})

    @classmethod
    def from_bytes(cls, data: bytes) -> "RoutingStatistics":
        """Restore statistics from a blob that `to_bytes` wrote.

        Raises:
            BlobError: The blob holds something else, or has a newer format.
        """
        tensors, _ = deserialize(data, what="routing statistics")
        if missing := sorted({*_SUMS, *_HELD_OUT} - tensors.keys()):
            raise BlobError(f"these routing statistics lack {', '.join(missing)}; restore the blob")
        pooled, random_features = (tensors[key] for key in _HELD_OUT)
        rows = FrozenFeatures(pooled, random_features)
        sums = {field: tensors[key] for key, field in _SUMS.items()}
        return cls(**sums, held_out=rows, evidence=FitStatistics.from_tensors(tensors))


# Names of a blob's tensors, which older releases read too, and the fields that hold them.
_SUMS = {"counts": "counts", "means": "means", "factor": "factor", "rest": "residual_variance"}
_HELD_OUT = {"vectors": "pooled", "wide": "random_features"}


def compute_statistics(
    features: Tensor, classes: Tensor, *, count: int, held_out: FrozenFeatures, evidence: FitStatistics | None = None
) -> RoutingStatistics:
    """Compute the routing statistics of one task.

    They are rounded as a blob stores them: half precision for all but counts and means, whose sums a router is solved
    from.

    Args:
        features: Rows [N, M] in random features.
        classes: Their classes [N], numbers below `count`.
        count: Number of classes C.
        held_out: H held-out rows.
        evidence: Statistics of the task in its delta's features.

    Returns:
        The statistics.
    """
    counts = torch.bincount(classes, minlength=count).double()
    means = (torch.zeros(count, features.shape[1]).index_add_(0, classes, features) / counts.unsqueeze(1)).float()
    factor, residual = _compress(features - means[classes])
    half_rows = FrozenFeatures(held_out.pooled.half(), held_out.random_features.half())
    return RoutingStatistics(counts, means, factor.half(), residual, half_rows, evidence)


def evenly_spaced(count: int, max_count: int = HELD_OUT) -> list[int]:
    """Return the indices, evenly spaced, of at most `max_count` of `count` rows."""
    return torch.linspace(0, max(count - 1, 0), min(count, max_count)).round().long().tolist()


def _compress(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Return the R largest principal axes [R, M] of rows [N, M], and the residual variance.

    Axes are scaled by their singular values. The sum of squares outside of them is spread evenly over all M directions.
    """
    rows, width = centred.shape
    gram = (centred @ centred.T if rows <= width else centred.T @ centred).double()
    first = max(len(gram) - SCATTER_RANK, 0)  # eigenvalues ascend
    eigenvalues, eigenvectors = eigh(gram.numpy(), subset_by_index=(first, len(gram) - 1), overwrite_a=True)
    values, axes = torch.from_numpy(eigenvalues).flip(0).clamp_min(0.0), torch.from_numpy(eigenvectors).flip(1)
    factor = axes.T @ centred.double() if rows <= width else values.sqrt().unsqueeze(1) * axes.T
    residual = (centred.double().square().sum() - factor.square().sum()).clamp_min(0.0) / width
    return factor, residual
