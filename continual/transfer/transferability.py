"""Measures of transferability: how well another task's delta would serve a task's own rows.

Shapes: N rows, D dimensions, C classes of the task, Z outputs of the other task's head. Higher is better for each.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_ITERATIONS, TOLERANCE = 100, 1e-6  # of LogME's fixed point; the tolerance is a relative change
MIN_SQUARE = 1e-12


@dataclass(frozen=True)
class TransferView:
    """A task's train rows through another task's delta.

    Attributes:
        vectors: Pooled vectors [N, D].
        classes: The rows' own classes [N], numbers below `count`.
        count: Number of classes C.
        answers: Probabilities [N, Z] by the other task's head, None where it has none.
        quality: Mean quality of held-out rows with a closed-form head, before any training.
    """

    vectors: Tensor
    classes: Tensor
    count: int
    answers: Tensor | None
    quality: float


def held_out_quality(view: TransferView) -> float:
    """Return the mean quality of held-out rows with a closed-form head in the delta's features."""
    return view.quality


def leep(view: TransferView) -> float | None:
    """Compute LEEP: the mean log-probability, in nats, of classes given the other head's answers.

    (1/N) Σ_i log Σ_z P(y_i | z) θ_z(x_i) with the answers θ and P(y | z) = Σ_{i: y_i = y} θ_z(x_i) / Σ_i θ_z(x_i).
    Nguyen et al. (2020), "LEEP", arXiv:2002.12462.

    Returns:
        The log-probability; None for a delta without such a head, and for a task of one class.
    """
    if view.answers is None or view.count < 2:
        return None
    theta = view.answers.double()
    joint = torch.zeros(view.count, theta.shape[1], dtype=torch.float64).index_add_(0, view.classes, theta)
    conditional = joint / joint.sum(dim=0).clamp_min(1e-300)
    return float((theta * conditional[view.classes]).sum(dim=1).clamp_min(1e-300).log().mean())


def logme(view: TransferView) -> float | None:
    """Compute LogME: the maximal log-evidence of a linear model of each class, per row and class.

    log p(y | F) = ½ (N log β + D log α − N log 2π − β ‖F m − y‖² − α ‖m‖² − log |A|), A = α I + β FᵀF, m = β A⁻¹ Fᵀ y,
    at the precisions α, β that maximise it.
    You et al. (2021), "LogME", arXiv:2102.11005.

    Returns:
        The log-evidence; None for a task of one class.
    """
    if view.count < 2:
        return None
    left_vectors, singular_values, _ = torch.linalg.svd(view.vectors.double(), full_matrices=False)
    targets = F.one_hot(view.classes, view.count).double()
    evidences = [
        _log_evidence(left_vectors.T @ y, singular_values, float(y @ y), view.vectors.shape) for y in targets.T
    ]
    return sum(evidences) / (len(evidences) * len(targets))


TRANSFERABILITY_MEASURES: dict[str, Callable[[TransferView], float | None]] = {
    "held_out": held_out_quality,
    "leep": leep,
    "logme": logme,
}


def _log_evidence(projected: Tensor, singular_values: Tensor, square: float, shape: torch.Size) -> float:
    """Maximise the log-evidence of one class over α and β by MacKay's fixed point.

    Args:
        projected: Uᵀ y [R] with F = U S Vᵀ.
        singular_values: The diagonal [R] of S.
        square: ‖y‖².
        shape: N and D.
    """
    (rows, size), spectrum = shape, singular_values.square()
    outside = square - float(projected.square().sum())  # the part of y that no direction of the features explains

    def solve(alpha: float, beta: float) -> tuple[float, float]:
        """Return ‖m‖² and ‖F m − y‖²."""
        weights = beta * singular_values * projected / (alpha + beta * spectrum)
        error = outside + float((projected - singular_values * weights).square().sum())
        return max(float(weights.square().sum()), MIN_SQUARE), max(error, MIN_SQUARE)

    alpha = beta = 1.0
    for _ in range(MAX_ITERATIONS):
        length, error = solve(alpha, beta)
        gamma = float((beta * spectrum / (alpha + beta * spectrum)).sum())
        previous, (alpha, beta) = (alpha, beta), (gamma / length, max(rows - gamma, MIN_SQUARE) / error)
        if abs(alpha - previous[0]) <= TOLERANCE * alpha and abs(beta - previous[1]) <= TOLERANCE * beta:
            break
    length, error = solve(alpha, beta)
    log_determinant = float((alpha + beta * spectrum).log().sum()) + (size - len(singular_values)) * math.log(alpha)
    fit = beta * error + alpha * length
    return 0.5 * (rows * math.log(beta / (2 * math.pi)) + size * math.log(alpha) - fit - log_determinant)
