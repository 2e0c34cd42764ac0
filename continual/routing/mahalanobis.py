"""Route to the task with the nearest class mean, by a Mahalanobis distance that all tasks share.

    d²(x, t) = min over classes c of t of (x − μ_c)ᵀ C⁻¹ (x − μ_c)     μ_c = (n_c m_c + κ m_t) / (n_c + κ)

m_c is the mean of the n_c rows of a class in the L leading features, m_t that of all rows of its task, and κ rows of
the task count as rows of each class: a mean of few rows is uncertain, and classes of one task lie close together. It is
the posterior mean under a normal prior of the task: Lindley and Smith (1972), "Bayes Estimates for the Linear Model". C
is the within-class covariance of all tasks, shrunk: Lee et al. (2018), "A Simple Unified Framework for Detecting
Out-of-Distribution Samples" (arXiv:1807.03888). Inputs of no task are recognised by the relative distance
d² − (x − μ₀)ᵀ C₀⁻¹ (x − μ₀), with the mean μ₀ and covariance C₀ of all inputs together: Ren et al. (2021), "A Simple
Fix to Mahalanobis Distance for Improving Near-OOD Detection" (arXiv:2106.09022).

Shapes: N inputs, M width of features, L leading features, C classes of all tasks, K tasks, Q candidate classes.
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from continual.features.signature import (
    cholesky_factor,
    inverse_shrunk_covariance,
    shrink_covariance,
    without_rounding,
)
from continual.routing.calibration import calibrated_loss
from continual.routing.candidates import ClassWeights
from continual.routing.held_out import HeldOutRows, tuning_sample
from continual.routing.moments import AccumulatedMoments, max_over_classes, solve_in_parts

SHRINKAGES = (0.03, 0.1, 0.01, 0.003)
PRIOR_ROWS = (0.0, 16.0)  # κ


@dataclass(frozen=True)
class Mahalanobis:
    """A linear discriminant for each class: −½ d² = xᵀ w_c + b_c, up to a term that all classes share.

    Attributes:
        weights: w = C⁻¹ μ, a row for each class [C, L].
        bias: b = −½ μᵀ C⁻¹ μ [C].
        task_of_class: Number [C] of each class's task.
        square: C⁻¹ − C₀⁻¹ [L, L].
        slope: C₀⁻¹ μ₀ [L].
        constant: ½ μ₀ᵀ C₀⁻¹ μ₀, a scalar.
    """

    weights: ClassWeights
    bias: Tensor
    task_of_class: Tensor
    square: Tensor
    slope: Tensor
    constant: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Compute −½ d² [N, K] of features [N, M], without the term xᵀ C⁻¹ x that all tasks share."""
        return max_over_classes(self.class_scores(features), self.task_of_class)

    def familiarity(self, features: Tensor) -> Tensor:
        """Compute −½ of the relative distance [N] of features [N, M] to their nearest class."""
        return self.familiarity_at(features, self.class_scores(features).amax(dim=1))

    def class_scores(self, features: Tensor, classes: Tensor | None = None) -> Tensor:
        """Compute −½ d² [N, C] likewise for classes, or [N, Q] for the candidate classes [N, Q] of each input."""
        return self.weights.scores(features, classes) + (self.bias if classes is None else self.bias[classes])

    def familiarity_at(self, features: Tensor, nearest: Tensor) -> Tensor:
        """Return the familiarity [N] of features [N, M] whose highest class score is `nearest` [N]."""
        x = features[:, : len(self.square)]
        return nearest - 0.5 * ((x @ self.square) * x).sum(dim=1) - x @ self.slope + self.constant


def mahalanobis(totals: AccumulatedMoments, rows: HeldOutRows) -> Mahalanobis:
    """Solve the rule, with the shrinkage and the κ that are best on held-out rows.

    Args:
        totals: Sums over tasks.
        rows: Held-out rows [H, M]; without any the first of `SHRINKAGES` and of `PRIOR_ROWS` are taken.
    """
    size, settings = len(totals.within), [*product(SHRINKAGES, PRIOR_ROWS)]
    best = settings[0]
    if len(rows.task_index):
        sample = tuning_sample(totals.task_of_class, rows)
        features = sample.rows.features[:, :size]
        chosen = {prior: totals.posterior_means(prior, size)[sample.classes] for prior in PRIOR_ROWS}

        def loss(setting: tuple[float, float]) -> float:
            weight, bias = _solve(totals, chosen[setting[1]], setting[0])
            return calibrated_loss(max_over_classes(features @ weight.T + bias, sample.task_of_class), sample.rows)

        best = min(settings, key=loss)
    weight, bias = _solve(totals, totals.posterior_means(best[1], size), best[0])
    return Mahalanobis(ClassWeights.of(weight), bias, totals.task_of_class, *_relative(totals, best[0]))


def _solve(totals: AccumulatedMoments, means: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Return the weights [C, L] and biases [C] of classes with the means [C, L]."""
    covariance = shrink_covariance(totals.within, len(totals.tasks), shrinkage)
    weight = solve_in_parts(cholesky_factor(covariance), means)
    return weight, -0.5 * (weight * means).sum(dim=1)


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
