"""Route to the task with the nearest class mean, by a Mahalanobis distance that all tasks share.

    d²(x, t) = min over classes c of t of (x − μ_c)ᵀ C⁻¹ (x − μ_c)

μ are class means in the L leading features, and C the within-class covariance of all tasks there, shrunk: Lee et al.
(2018), "A Simple Unified Framework for Detecting Out-of-Distribution Samples" (arXiv:1807.03888). Inputs of no task are
recognised by the relative distance d² − (x − μ₀)ᵀ C₀⁻¹ (x − μ₀), with the mean μ₀ and covariance C₀ of all inputs
together: Ren et al. (2021), "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection" (arXiv:2106.09022).

Shapes: N inputs, M width of features, L leading features, C classes of all tasks, K tasks.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from continual.features.signature import (
    cholesky_factor,
    inverse_shrunk_covariance,
    shrink_covariance,
    without_rounding,
)
from continual.routing.class_index import ClassMeanIndex
from continual.routing.held_out import HeldOutRows, calibrated_loss
from continual.routing.moments import AccumulatedMoments, max_over_classes

SHRINKAGES = (0.03, 0.01, 0.003)
INDEX_THRESHOLD = 20_000  # classes; with more, not every one is compared with every input


@dataclass(frozen=True)
class Mahalanobis:
    """A linear discriminant for each class: −½ d² = xᵀ w_c + b_c, up to a term that all classes share.

    Attributes:
        weight: w = C⁻¹ μ [L, C].
        bias: b = −½ μᵀ C⁻¹ μ [C].
        task_of_class: Number [C] of each class's task.
        totals: Sums over tasks that the rule is solved from.
        shrinkage: Shrinkage of the covariance.
    """

    weight: Tensor
    bias: Tensor
    task_of_class: Tensor
    totals: AccumulatedMoments
    shrinkage: float

    def scores(self, features: Tensor) -> Tensor:
        """Compute −½ d² [N, K] of features [N, M], without the term xᵀ C⁻¹ x that all tasks share."""
        return max_over_classes(self._class_scores(features), self.task_of_class)

    def familiarity(self, features: Tensor) -> Tensor:
        """Compute −½ of the relative distance [N] of features [N, M] to their nearest class."""
        square, slope, constant = self._relative
        nearest, x = self._class_scores(features).amax(dim=1), features[:, : len(square)]
        return nearest - 0.5 * ((x @ square) * x).sum(dim=1) - x @ slope + constant

    def _class_scores(self, features: Tensor) -> Tensor:
        return features[:, : len(self.weight)] @ self.weight + self.bias

    @cached_property
    def _relative(self) -> tuple[Tensor, Tensor, float]:
        """C⁻¹ − C₀⁻¹ [L, L], C₀⁻¹ μ₀ [L] and ½ μ₀ᵀ C₀⁻¹ μ₀."""
        totals, num_tasks, size = self.totals, len(self.totals.tasks), len(self.weight)
        centre = totals.total[:size] / num_tasks
        moment = totals.moment[:size, :size] / num_tasks
        spread = without_rounding(moment - torch.outer(centre, centre), float(moment.trace()))
        background = inverse_shrunk_covariance(spread, 1.0, self.shrinkage)
        slope = background @ centre
        square = inverse_shrunk_covariance(totals.within, num_tasks, self.shrinkage) - background
        return square.float(), slope.float(), 0.5 * float(centre @ slope)


def mahalanobis(totals: AccumulatedMoments, rows: HeldOutRows) -> Mahalanobis | ClassMeanIndex:
    """Solve the rule, with the shrinkage that is best on held-out rows; index very many classes.

    Args:
        totals: Sums over tasks.
        rows: Held-out rows [H, M]; without any the first of `SHRINKAGES` is taken.

    Returns:
        The exact rule, or the index where there are more than `INDEX_THRESHOLD` classes of features M ≤ L.
    """
    if len(totals.task_of_class) > INDEX_THRESHOLD and len(totals.within) == len(totals.moment):
        return ClassMeanIndex(totals, SHRINKAGES[0])
    rules = [_solve(totals, shrinkage) for shrinkage in SHRINKAGES]
    return (
        min(rules, key=lambda rule: calibrated_loss(rule.scores(rows.features), rows))
        if len(rows.task_index)
        else rules[0]
    )


def _solve(totals: AccumulatedMoments, shrinkage: float) -> Mahalanobis:
    means = totals.means[:, : len(totals.within)].double().T
    weight = torch.cholesky_solve(
        means, cholesky_factor(shrink_covariance(totals.within, len(totals.tasks), shrinkage))
    )
    bias = -0.5 * (weight * means).sum(dim=0)
    return Mahalanobis(weight.float(), bias.float(), totals.task_of_class, totals, shrinkage)
