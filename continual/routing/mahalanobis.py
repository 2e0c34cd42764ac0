"""The task whose nearest class mean is nearest, in one metric that all tasks share.

    d²(x, t) = min over classes c of t of (x − μ_c)ᵀ C⁻¹ (x − μ_c)

μ are class means in the L leading features, and C the within-class covariance of all tasks there, shrunk: Lee et al.
(2018), "A Simple Unified Framework for Detecting Out-of-Distribution Samples" (arXiv:1807.03888). What is like no task
is told by how much nearer x is to a class than to all inputs together, d² − (x − μ₀)ᵀ C₀⁻¹ (x − μ₀) with their mean μ₀
and covariance C₀: Ren et al. (2021), "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection"
(arXiv:2106.09022).
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from continual.features.signature import inverse_shrunk_covariance, shrink_covariance
from continual.routing.class_index import ClassMeanIndex
from continual.routing.held_out import HeldOutRows, calibrated_loss
from continual.routing.totals import AccumulatedMoments, max_over_classes

SHRINKAGES = (0.03, 0.01, 0.003)
INDEX_THRESHOLD = 20_000  # classes; with more, not every one is compared with every input


@dataclass(frozen=True)
class Mahalanobis:
    """weight [L, C], bias [C]: of −½ d², but for what is the same of all classes · totals, shrinkage: its origin."""

    weight: Tensor
    bias: Tensor
    task_of_class: Tensor
    totals: AccumulatedMoments
    shrinkage: float

    def scores(self, features: Tensor) -> Tensor:
        """−½ d² [N, K] but for xᵀ C⁻¹ x."""
        return max_over_classes(self._by_class(features), self.task_of_class)

    def familiarity(self, features: Tensor) -> Tensor:
        """−½ of the relative distance to the nearest class [N]."""
        square, slope, constant = self._relative
        nearest, x = self._by_class(features).amax(dim=1), features[:, : len(square)]
        return nearest - 0.5 * ((x @ square) * x).sum(dim=1) - x @ slope + constant

    def _by_class(self, features: Tensor) -> Tensor:
        return features[:, : len(self.weight)] @ self.weight + self.bias

    @cached_property
    def _relative(self) -> tuple[Tensor, Tensor, float]:
        """C⁻¹ − C₀⁻¹ [L, L], C₀⁻¹ μ₀ [L] and ½ μ₀ᵀ C₀⁻¹ μ₀."""
        totals, count, size = self.totals, len(self.totals.tasks), len(self.weight)
        centre = totals.total[:size] / count
        spread = totals.moment[:size, :size] / count - torch.outer(centre, centre)
        background = inverse_shrunk_covariance(spread, 1.0, self.shrinkage)
        slope = background @ centre
        square = inverse_shrunk_covariance(totals.within, count, self.shrinkage) - background
        return square.float(), slope.float(), 0.5 * float(centre @ slope)


def mahalanobis(totals: AccumulatedMoments, rows: HeldOutRows) -> Mahalanobis | ClassMeanIndex:
    """In the leading features, its shrinkage chosen on held-out rows; by an index where there are very many classes."""
    if len(totals.task_of_class) > INDEX_THRESHOLD and len(totals.within) == len(totals.moment):
        return ClassMeanIndex(totals, SHRINKAGES[0])
    rules = [_solved(totals, shrinkage) for shrinkage in SHRINKAGES]
    return (
        min(rules, key=lambda rule: calibrated_loss(rule.scores(rows.features), rows))
        if len(rows.task_index)
        else rules[0]
    )


def _solved(totals: AccumulatedMoments, shrinkage: float) -> Mahalanobis:
    means = totals.means[:, : len(totals.within)].double().T
    weight = torch.cholesky_solve(
        means, torch.linalg.cholesky(shrink_covariance(totals.within, len(totals.tasks), shrinkage))
    )
    bias = -0.5 * (weight * means).sum(dim=0)
    return Mahalanobis(weight.float(), bias.float(), totals.task_of_class, totals, shrinkage)
