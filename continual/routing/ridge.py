"""Route by ridge regression of the classes of all tasks on wide random features.

    W = (G + λ (tr G / M) I)⁻¹ B     s(x, t) = max over classes c of t of w_cᵀ x

with G the second moment of all tasks and column c of B the mean of class c times its share of its task's rows.
McDonnell et al. (2023), "RanPAC" (arXiv:2307.02251); every task counts the same here, however many rows it has.

Shapes: N inputs, M width of features, C classes of all tasks, K tasks, Q candidate classes.
"""

from dataclasses import dataclass

from torch import Tensor

from continual.features.signature import cholesky_factor
from continual.routing.calibration import calibrated_loss
from continual.routing.candidates import ClassWeights
from continual.routing.held_out import HeldOutRows, tuning_sample
from continual.routing.moments import LEADING_FEATURES, AccumulatedMoments, max_over_classes, solve_in_parts

PENALTIES = (1e-4, 1e-3, 1e-2)  # λ


@dataclass(frozen=True)
class Ridge:
    """The solution of the regression.

    Attributes:
        weights: W, a row for each class [C, M].
        task_of_class: Number [C] of each class's task.
    """

    weights: ClassWeights
    task_of_class: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Compute s(x, t) [N, K] of features [N, M]."""
        return max_over_classes(self.class_scores(features), self.task_of_class)

    def familiarity(self, features: Tensor) -> Tensor:
        """Compute the highest output [N] of features [N, M]: an input unlike all train rows has no high one."""
        return self.class_scores(features).amax(dim=1)

    def class_scores(self, features: Tensor, classes: Tensor | None = None) -> Tensor:
        """Compute w_cᵀ x [N, C] of features [N, M], or [N, Q] for the candidate classes [N, Q] of each input."""
        return self.weights.scores(features, classes)

    def familiarity_at(self, features: Tensor, nearest: Tensor) -> Tensor:
        """Return the familiarity [N] of features [N, M] whose highest class score is `nearest` [N]."""
        return nearest


def ridge(totals: AccumulatedMoments, rows: HeldOutRows) -> Ridge:
    """Solve the regression, with the penalty λ that is best on held-out rows.

    λ is chosen in the leading features, whose solution takes a small part of the time that all features take.

    Args:
        totals: Sums over tasks.
        rows: Held-out rows [H, M]; without any the first of `PENALTIES` is taken.

    Returns:
        The solution in all M features.
    """
    penalty, means = PENALTIES[0], totals.means * totals.shares.unsqueeze(1)
    if len(rows.task_index):
        size = min(len(totals.moment), LEADING_FEATURES)
        sample = tuning_sample(totals.task_of_class, rows)

        def loss(penalty: float) -> float:
            weight = _solve(totals, means[sample.classes, :size], penalty)
            scores = sample.rows.features[:, :size] @ weight.T
            return calibrated_loss(max_over_classes(scores, sample.task_of_class), sample.rows)

        penalty = min(PENALTIES, key=loss)
    return Ridge(ClassWeights.of(_solve(totals, means, penalty)), totals.task_of_class)


def _solve(totals: AccumulatedMoments, targets: Tensor, penalty: float) -> Tensor:
    """Return the weights [C, L] for targets [C, L], the rows of Bᵀ in the L leading features."""
    size = targets.shape[1]
    moment = totals.moment[:size, :size].clone()
    moment.diagonal().add_(penalty * (float(moment.diagonal().mean()) or 1.0))
    return solve_in_parts(cholesky_factor(moment), targets)
