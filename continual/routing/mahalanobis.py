"""The task whose nearest class mean is nearest, in one metric that all tasks share.

    d²(x, t) = min over classes c of t of (x − μ_c)ᵀ C⁻¹ (x − μ_c)

μ are class means and C the within-class covariance of all tasks, shrunk: Lee et al. (2018), "A Simple Unified Framework
for Detecting Out-of-Distribution Samples" (arXiv:1807.03888). What is like no task is told by how much nearer x is to a
class than to all inputs together, d² − (x − μ₀)ᵀ C₀⁻¹ (x − μ₀) with their mean μ₀ and covariance C₀: Ren et al. (2021),
"A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection" (arXiv:2106.09022).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from continual.routing.totals import Totals, by_task
from continual.signature import shrunk, shrunk_inverse

SHRINKAGES = (0.003, 0.03)


@dataclass(frozen=True)
class Mahalanobis:
    """weight [M, C], bias [C]: of −½ d², but for what is the same of all classes · totals, shrinkage: its origin."""

    weight: Tensor
    bias: Tensor
    owner: Tensor
    totals: Totals
    shrinkage: float

    def scores(self, features: Tensor) -> Tensor:
        """−½ d² [N, K] but for xᵀ C⁻¹ x."""
        return by_task(features @ self.weight + self.bias, self.owner)

    def known(self, features: Tensor) -> Tensor:
        """−½ of the relative distance to the nearest class [N]."""
        square, slope, constant = self._relative
        nearest = (features @ self.weight + self.bias).amax(dim=1)
        return nearest - 0.5 * ((features @ square) * features).sum(dim=1) - features @ slope + constant

    @cached_property
    def _relative(self) -> tuple[Tensor, Tensor, float]:
        """C⁻¹ − C₀⁻¹ [M, M], C₀⁻¹ μ₀ [M] and ½ μ₀ᵀ C₀⁻¹ μ₀."""
        totals, count = self.totals, len(self.totals.tasks)
        centre = totals.total / count
        background = shrunk_inverse(totals.moment / count - torch.outer(centre, centre), 1.0, self.shrinkage)
        slope = background @ centre
        square = shrunk_inverse(totals.within, count, self.shrinkage) - background
        return square.float(), slope.float(), 0.5 * float(centre @ slope)


def mahalanobis(totals: Totals) -> Iterator[Mahalanobis]:
    """One for each shrinkage."""
    means = totals.means.double()
    for shrinkage in SHRINKAGES:
        factor = torch.linalg.cholesky(shrunk(totals.within, len(totals.tasks), shrinkage))
        weight = torch.cholesky_solve(means.T, factor)
        bias = -0.5 * (weight * means.T).sum(dim=0)
        yield Mahalanobis(weight.float(), bias.float(), totals.owner, totals, shrinkage)
