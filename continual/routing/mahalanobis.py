"""The router: the task whose nearest class mean is nearest to the input, in one metric shared by all tasks.

    d²(x, t) = min over classes c of t of (x − μ_c)ᵀ C⁻¹ (x − μ_c)

μ are class means in frozen features and C is the within-class covariance of all tasks together, shrunk. Both follow
from the tasks' additive signatures, so a task is added without looking at an old one, and the order of arrival is of no
effect. Lee et al. (2018), "A Simple Unified Framework for Detecting Out-of-Distribution Samples" (arXiv:1807.03888).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from continual.signature import Signature, shrunk_inverse

SHRINKAGE = 0.03


@dataclass(frozen=True)
class Routed:
    """Where N inputs go: the number of the task [N], and its share of the likelihood of all tasks [N]."""

    tasks: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class Router:
    """The tasks that are known, in order, and what is needed to tell them apart.

    means [C, D] of the classes of all tasks · owner [C]: the number of each class's task · precision [D, D]: C⁻¹.
    """

    tasks: tuple[str, ...]
    means: Tensor
    owner: Tensor
    precision: Tensor

    def distances(self, vectors: Tensor) -> Tensor:
        """Squared distances d² [N, K] of frozen features [N, D] to each of the K tasks."""
        x = vectors.double()
        inner = x @ self.precision
        by_class = (
            (inner * x).sum(dim=1, keepdim=True)
            - 2 * inner @ self.means.T
            + ((self.means @ self.precision) * self.means).sum(dim=1)
        )
        by_task = torch.full((len(x), len(self.tasks)), torch.inf, dtype=torch.float64)
        return by_task.scatter_reduce_(1, self.owner.expand(len(x), -1), by_class, "amin")

    def route(self, vectors: Tensor) -> Routed:
        """The task of each of N vectors; confidence is exp(−d²/2) of the task over the sum for all tasks."""
        confidence, tasks = torch.softmax(-0.5 * self.distances(vectors), dim=1).max(dim=1)
        return Routed(tasks, confidence)


def build_router(signatures: Mapping[str, Signature]) -> Router:
    """The router of one task or more, from their signatures in one backbone's frozen features."""
    parts = list(signatures.values())
    scatter = torch.stack([part.scatter for part in parts]).sum(dim=0)
    sizes = torch.tensor([len(part.counts) for part in parts])
    return Router(
        tasks=tuple(signatures),
        means=torch.cat([part.means for part in parts]),
        owner=torch.repeat_interleave(torch.arange(len(parts)), sizes),
        precision=shrunk_inverse(scatter, sum(part.freedom for part in parts), SHRINKAGE),
    )
