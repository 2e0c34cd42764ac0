"""How well another task's delta would serve a task, by the task's own rows as that delta shows them.

Shapes: N rows, D dimensions, C classes of the task, Z outputs of the other task's head. Higher is better for each.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

STEPS, CLOSE = 100, 1e-6  # of LogME's fixed point: the most, and the relative change at which it is reached
TINY = 1e-12


@dataclass(frozen=True)
class TransferView:
    """A task's train rows through another task's delta.

    vectors [N, D] · classes [N]: the rows' own, below `count` · answers [N, Z]: probabilities that the other's head
    gives, None where it has none · quality: of the held-out rows with a head in closed form, before any training.
    """

    vectors: Tensor
    classes: Tensor
    count: int
    answers: Tensor | None
    quality: float


def leep(look: TransferView) -> float | None:
    """The mean log probability of a row's class by the other head's answers alone, in nats.

    (1/N) Σ_i log Σ_z P(y_i | z) θ_z(x_i) with the answers θ and P(y | z) = Σ_{i: y_i = y} θ_z(x_i) / Σ_i θ_z(x_i).
    Nguyen et al. (2020), "LEEP", arXiv:2002.12462. None for a delta without such a head, and for a task of one class.
    """
    if look.answers is None or look.count < 2:
        return None
    theta = look.answers.double()
    joint = torch.zeros(look.count, theta.shape[1], dtype=torch.float64).index_add_(0, look.classes, theta)
    given = joint / joint.sum(dim=0).clamp_min(1e-300)
    return float((theta * given[look.classes]).sum(dim=1).clamp_min(1e-300).log().mean())


def logme(look: TransferView) -> float | None:
    """The log evidence of a linear model of each class by the features, a row and a class, at its best precisions.

    log p(y | F) = ½ (N log β + D log α − N log 2π − β ‖F m − y‖² − α ‖m‖² − log |A|), A = α I + β FᵀF, m = β A⁻¹ Fᵀ y.
    You et al. (2021), "LogME", arXiv:2102.11005. None for a task of one class.
    """
    if look.count < 2:
        return None
    left, sizes, _ = torch.linalg.svd(look.vectors.double(), full_matrices=False)
    targets = F.one_hot(look.classes, look.count).double()
    found = [_evidence(left.T @ y, sizes, float(y @ y), look.vectors.shape) for y in targets.T]
    return sum(found) / (len(found) * len(targets))


def held_out_quality(look: TransferView) -> float:
    """The mean quality of held-out rows with a head in closed form in the delta's features."""
    return look.quality


def _evidence(projected: Tensor, sizes: Tensor, square: float, shape: torch.Size) -> float:
    """Of one class, from Uᵀ y [R], the singular values [R] of F = U S Vᵀ and ‖y‖², by MacKay's fixed point."""
    (rows, size), spectrum = shape, sizes.square()
    outside = square - float(projected.square().sum())  # what no direction of the features explains

    def solved(alpha: float, beta: float) -> tuple[float, float]:
        """‖m‖² and ‖F m − y‖²"""
        weights = beta * sizes * projected / (alpha + beta * spectrum)
        error = outside + float((projected - sizes * weights).square().sum())
        return max(float(weights.square().sum()), TINY), max(error, TINY)

    alpha = beta = 1.0
    for _ in range(STEPS):
        length, error = solved(alpha, beta)
        gamma = float((beta * spectrum / (alpha + beta * spectrum)).sum())
        before, (alpha, beta) = (alpha, beta), (gamma / length, max(rows - gamma, TINY) / error)
        if abs(alpha - before[0]) <= CLOSE * alpha and abs(beta - before[1]) <= CLOSE * beta:
            break
    length, error = solved(alpha, beta)
    determinant = float((alpha + beta * spectrum).log().sum()) + (size - len(sizes)) * math.log(alpha)
    fit = beta * error + alpha * length
    return 0.5 * (rows * math.log(beta / (2 * math.pi)) + size * math.log(alpha) - fit - determinant)


TRANSFERABILITY_MEASURES: dict[str, Callable[[TransferView], float | None]] = {
    "held_out": held_out_quality,
    "leep": leep,
    "logme": logme,
}
