"""What a router needs to know of one task: class means and scatter in wide frozen features, and a few held-out rows.

Shapes: C classes, M width, R rank, H held-out rows, D hidden size.
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

SCATTER_RANK = 512  # what of a task's scatter is kept exactly: with 256 of 2,048 a router errs measurably more
HELD_OUT = 128


class TaskMoments(Protocol):
    """What a task adds to a router: class sizes n [C], means μ [C, M] and within-class scatter [M, M]."""

    @property
    def counts(self) -> Tensor: ...
    @property
    def means(self) -> Tensor: ...
    @property
    def scatter(self) -> Tensor: ...
    @property
    def degrees_of_freedom(self) -> int: ...


@dataclass(frozen=True)
class RoutingStatistics:
    """A task in wide features. counts [C] · means [C, M] · factor [R, M] and rest: the scatter is FᵀF + rest · I, its
    R largest principal axes and the mean of all others · held_out: H validation rows · evidence: how its delta
    takes to its own held-out rows, None where it has no delta that was trained here."""

    counts: Tensor
    means: Tensor
    factor: Tensor
    residual_variance: Tensor
    held_out: FrozenFeatures
    evidence: FitStatistics | None = None

    @property
    def scatter(self) -> Tensor:
        factor = self.factor.float()
        scatter = (factor.T @ factor).double()
        scatter.diagonal().add_(self.residual_variance)
        return scatter

    @property
    def degrees_of_freedom(self) -> int:
        """Degrees of freedom of the scatter: rows less classes, at least one."""
        return max(int(self.counts.sum()) - len(self.counts), 1)

    def to_bytes(self) -> bytes:
        sums = {key: getattr(self, field) for key, field in _SUMS.items()}
        rows = {key: getattr(self.held_out, field) for key, field in _HELD_OUT.items()}
        return serialize({**sums, **rows, **(self.evidence.to_tensors() if self.evidence else {})})

    @classmethod
    def from_bytes(cls, data: bytes) -> "RoutingStatistics":
        """What `to_bytes` wrote. Raises: BlobError, where it is none, or of a newer format."""
        tensors, _ = deserialize(data, what="routing statistics")
        if missing := sorted({*_SUMS, *_HELD_OUT} - tensors.keys()):
            raise BlobError(f"these routing statistics lack {', '.join(missing)}; restore the blob")
        rows = FrozenFeatures(**{field: tensors[key] for key, field in _HELD_OUT.items()})
        sums = {field: tensors[key] for key, field in _SUMS.items()}
        return cls(**sums, held_out=rows, evidence=FitStatistics.from_tensors(tensors))


# The names of a blob's tensors, which older releases read too, and the fields that hold them.
_SUMS = {"counts": "counts", "means": "means", "factor": "factor", "rest": "residual_variance"}
_HELD_OUT = {"vectors": "pooled", "wide": "random_features"}


def compute_statistics(
    wide: Tensor, classes: Tensor, *, count: int, held_out: FrozenFeatures, evidence: FitStatistics | None = None
) -> RoutingStatistics:
    """Statistics of rows [N, M] whose classes [N] are numbers below `count`, and of held-out rows.

    As they are stored: in half precision but for counts and means, whose sums a router is made of.
    """
    counts = torch.bincount(classes, minlength=count).double()
    means = (torch.zeros(count, wide.shape[1]).index_add_(0, classes, wide) / counts.unsqueeze(1)).float()
    factor, rest = _compressed(wide - means[classes])
    kept = FrozenFeatures(held_out.pooled.half(), held_out.random_features.half())
    return RoutingStatistics(counts, means, factor.half(), rest, kept, evidence)


def evenly_spaced(count: int) -> list[int]:
    """Which of so many held-out rows are kept: evenly spaced."""
    return torch.linspace(0, max(count - 1, 0), min(count, HELD_OUT)).round().long().tolist()


def _compressed(centred: Tensor) -> tuple[Tensor, Tensor]:
    """The R largest principal axes [R, M] of rows [N, M], each as long as its singular value, and what is left.

    What is left of the sum of squares is spread evenly over all directions.
    """
    rows, width = centred.shape
    gram = (centred @ centred.T if rows <= width else centred.T @ centred).double()
    first = max(len(gram) - SCATTER_RANK, 0)  # the values ascend
    found = eigh(gram.numpy(), subset_by_index=(first, len(gram) - 1), overwrite_a=True)
    values, axes = torch.from_numpy(found[0]).flip(0).clamp_min(0.0), torch.from_numpy(found[1]).flip(1)
    factor = axes.T @ centred.double() if rows <= width else values.sqrt().unsqueeze(1) * axes.T
    rest = (centred.double().square().sum() - factor.square().sum()).clamp_min(0.0) / width
    return factor, rest
