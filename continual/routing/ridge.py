"""Route by ridge regression of the classes of all tasks on wide random features.

    W = (G + λ (tr G / M) I)⁻¹ B     s(x, t) = max over classes c of t of w_cᵀ x

with G the second moment of all tasks and column c of B the mean of class c times its share of its task's rows.
McDonnell et al. (2023), "RanPAC" (arXiv:2307.02251); every task counts the same here, however many rows it has.

Shapes: N inputs, M width of features, C classes of all tasks, K tasks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from continual.features.signature import cholesky_factor
from continual.routing.held_out import HeldOutRows, calibrated_loss
from continual.routing.moments import LEADING_FEATURES, AccumulatedMoments, max_over_classes

PENALTIES = (1e-4, 1e-3, 1e-2)  # λ


@dataclass(frozen=True)
class Ridge:
    """The solution of the regression.

    Attributes:
        weight: W [M, C].
        task_of_class: Number [C] of each class's task.
    """

    weight: Tensor
    task_of_class: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Compute s(x, t) [N, K] of features [N, M]."""
        return max_over_classes(features @ self.weight, self.task_of_class)

    def familiarity(self, features: Tensor) -> Tensor:
        """Compute the highest output [N] of features [N, M]: an input unlike all train rows has no high one."""
        return (features @ self.weight).amax(dim=1)


def ridge(totals: AccumulatedMoments, rows: HeldOutRows) -> Ridge:
    """Solve the regression, with the penalty λ that is best on held-out rows.

    λ is chosen in the leading features, whose solution takes a small part of the time that all features take.

    Args:
        totals: Sums over tasks.
        rows: Held-out rows [H, M]; without any the first of `PENALTIES` is taken.

    Returns:
        The solution in all M features.
    """
    size = min(len(totals.moment), LEADING_FEATURES)
    leading = rows.features[:, :size]
    if len(rows.task_index):
        penalty = min(
            PENALTIES, key=lambda penalty: calibrated_loss(_solve(totals, size, penalty).scores(leading), rows)
        )
    else:
        penalty = PENALTIES[0]
    return _solve(totals, len(totals.moment), penalty)


def _solve(totals: AccumulatedMoments, size: int, penalty: float) -> Ridge:
    """Solve the regression in the first `size` features."""
    moment, means = totals.moment[:size, :size].clone(), totals.means[:, :size]
    moment.diagonal().add_(penalty * (float(moment.diagonal().mean()) or 1.0))
    targets = (means * totals.shares.unsqueeze(1)).double().T
    weight = torch.cholesky_solve(targets, cholesky_factor(moment))
    return Ridge(weight.float().contiguous(), totals.task_of_class)
