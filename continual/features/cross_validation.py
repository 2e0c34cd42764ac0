"""The cross-validated loss of closed-form heads, by which representations of the same rows are compared.

    L = min_λ 1/N Σ_n ℓ(y_n, f_λ^{−k(n)}(x_n))

with f^{−k} fitted on the rows outside fold k, and k(n) the fold of row n. Stone (1974), "Cross-Validatory Choice and
Assessment of Statistical Predictions". Every row is judged, so that few rows decide as well as they can.

Shapes: N rows, C classes, D dimensions, R = min(N, D).
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.features.discriminant import SHRINKAGES, best_temperature
from continual.features.signature import compute_signature

FOLDS = 4
RIDGE_PENALTIES = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)  # of the features' mean variance


def discriminant_loss(vectors: Tensor, classes: Tensor) -> float | None:
    """Return the cross entropy of the linear discriminant, in nats, with the shrinkage and temperature of the least.

    Args:
        vectors: Vectors [N, D].
        classes: Their classes [N]; the rows of a class with a single one are fitted, never judged.

    Returns:
        The loss; None where every class has a single row.
    """
    _, classes = torch.unique(classes, return_inverse=True)
    count = int(classes.max()) + 1 if len(classes) else 0
    folds = _stratified_folds(classes)
    judged = folds >= 0
    if count < 2 or not bool(judged.any()):
        return None
    coordinates = _coordinates(vectors)
    logits = torch.zeros(len(SHRINKAGES), len(classes), count, dtype=torch.float64)
    for fold in range(FOLDS):
        fitted, held_out = folds != fold, folds == fold
        signature = compute_signature(coordinates[fitted], classes[fitted], count=count)
        values, axes = torch.linalg.eigh(signature.scatter / signature.degrees_of_freedom)
        means, inputs = signature.means @ axes, coordinates[held_out] @ axes
        log_prior = torch.log(signature.counts / signature.counts.sum())
        scale = float(values.mean().clamp_min(0)) or 1.0
        for number, shrinkage in enumerate(SHRINKAGES):
            weight = means / ((1 - shrinkage) * values.clamp_min(0) + shrinkage * scale)
            logits[number, held_out] = F.linear(inputs, weight, log_prior - 0.5 * (weight * means).sum(dim=1))
    return min(best_temperature(each[judged], classes[judged])[1] for each in logits)


def ridge_loss(vectors: Tensor, targets: Tensor) -> float | None:
    """Return the mean squared error of ridge regression, with the penalty of the least.

    Args:
        vectors: Vectors [N, D].
        targets: Their numbers [N].

    Returns:
        The loss; None for fewer than two rows.
    """
    if len(targets) < 2:
        return None
    coordinates, targets = _coordinates(vectors), targets.double()
    folds = torch.arange(len(targets)) % FOLDS
    errors = torch.zeros(len(RIDGE_PENALTIES), len(targets), dtype=torch.float64)
    for fold in range(min(FOLDS, len(targets))):
        fitted, held_out = folds != fold, folds == fold
        mean, target_mean = coordinates[fitted].mean(dim=0), targets[fitted].mean()
        inputs = coordinates[fitted] - mean
        values, axes = torch.linalg.eigh(inputs.T @ inputs)
        moments = axes.T @ (inputs.T @ (targets[fitted] - target_mean))
        scale = float(values.mean().clamp_min(0)) or 1.0
        for number, penalty in enumerate(RIDGE_PENALTIES):
            weight = axes @ (moments / (values.clamp_min(0) + penalty * scale))
            predictions = (coordinates[held_out] - mean) @ weight + target_mean
            errors[number, held_out] = (predictions - targets[held_out]).square()
    return float(errors.mean(dim=1).min())


def _stratified_folds(classes: Tensor) -> Tensor:
    """Return the fold [N] of each row, those of each class dealt in turn; −1 for the only row of a class."""
    folds = torch.full_like(classes, -1)
    for rows in _rows_by_class(classes):
        if len(rows) > 1:
            folds[rows] = torch.arange(len(rows)) % FOLDS
    return folds


def _rows_by_class(classes: Tensor) -> Iterator[Tensor]:
    for number in range(int(classes.max()) + 1 if len(classes) else 0):
        yield (classes == number).nonzero().squeeze(1)


def _coordinates(vectors: Tensor) -> Tensor:
    """Return centred vectors [N, D] in coordinates of the space that they span, [N, R], float64.

    Distances are the same, and so is every fit that is invariant under rotations, in fewer dimensions.
    """
    centred = vectors.double() - vectors.double().mean(dim=0)
    return centred if len(centred) >= centred.shape[1] else torch.linalg.qr(centred.T, mode="r").R.T
