"""Route to the task with the nearest class mean, by a Mahalanobis distance that all tasks share.

    d²(x, t) = min over classes c of t of (x − μ_c)ᵀ C⁻¹ (x − μ_c)

μ are class means in the L leading features, and C the within-class covariance of all tasks there, shrunk: Lee et al.
(2018), "A Simple Unified Framework for Detecting Out-of-Distribution Samples" (arXiv:1807.03888). Inputs of no task are
recognised by the relative distance d² − (x − μ₀)ᵀ C₀⁻¹ (x − μ₀), with the mean μ₀ and covariance C₀ of all inputs
together: Ren et al. (2021), "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection" (arXiv:2106.09022).

Shapes: N inputs, M width of features, L leading features, C classes of all tasks, K tasks.
"""

from dataclasses import dataclass

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
        square: C⁻¹ − C₀⁻¹ [L, L].
        slope: C₀⁻¹ μ₀ [L].
        constant: ½ μ₀ᵀ C₀⁻¹ μ₀, a scalar.
    """

    weight: Tensor
    bias: Tensor
    task_of_class: Tensor
    square: Tensor
    slope: Tensor
    constant: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Compute −½ d² [N, K] of features [N, M], without the term xᵀ C⁻¹ x that all tasks share."""
        return max_over_classes(_class_scores(features, self.weight, self.bias), self.task_of_class)

    def familiarity(self, features: Tensor) -> Tensor:
        """Compute −½ of the relative distance [N] of features [N, M] to their nearest class."""
        nearest, x = _class_scores(features, self.weight, self.bias).amax(dim=1), features[:, : len(self.square)]
        return nearest - 0.5 * ((x @ self.square) * x).sum(dim=1) - x @ self.slope + self.constant


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
    task_of_class = totals.task_of_class
    solutions = {shrinkage: _solve(totals, shrinkage) for shrinkage in SHRINKAGES}

    def loss(shrinkage: float) -> float:
        scores = _class_scores(rows.features, *solutions[shrinkage])
        return calibrated_loss(max_over_classes(scores, task_of_class), rows)

    best = min(SHRINKAGES, key=loss) if len(rows.task_index) else SHRINKAGES[0]
    return Mahalanobis(*solutions[best], task_of_class, *_relative(totals, best))


def _class_scores(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return features[:, : len(weight)] @ weight + bias


def _solve(totals: AccumulatedMoments, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Return the weights [L, C] and biases [C] of the classes."""
    means = totals.means[:, : len(totals.within)].double().T
    weight = torch.cholesky_solve(
        means, cholesky_factor(shrink_covariance(totals.within, len(totals.tasks), shrinkage))
    )
    bias = -0.5 * (weight * means).sum(dim=0)
    return weight.float().contiguous(), bias.float()


def _relative(totals: AccumulatedMoments, shrinkage: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return C⁻¹ − C₀⁻¹ [L, L], C₀⁻¹ μ₀ [L] and ½ μ₀ᵀ C₀⁻¹ μ₀."""
    num_tasks, size = len(totals.tasks), len(totals.within)
    centre = totals.total[:size] / num_tasks
    moment = totals.moment[:size, :size] / num_tasks
    spread = without_rounding(moment - torch.outer(centre, centre), float(moment.trace()))
    background = inverse_shrunk_covariance(spread, 1.0, shrinkage)
    slope = background @ centre
    square = inverse_shrunk_covariance(totals.within, num_tasks, shrinkage) - background
    return square.float().contiguous(), slope.float(), (0.5 * (centre @ slope)).float()
