"""Held-out rows of all tasks, and the fit of a router's weights and offsets on them.

Every task counts the same, however many rows it has.

Shapes: H held-out rows of all tasks, M width of features, K tasks, R rules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from continual.routing.statistics import RoutingStatistics

SMOOTHING = 0.001  # of labels: where all held-out rows are separated, no weight would be large enough
LARGEST_WEIGHT = 1e4
OFFSET_PENALTY = 1e-2  # nats for a mean square of offsets of one

Features = Literal["random_features", "pooled"]


@dataclass(frozen=True)
class HeldOutRows:
    """Held-out rows of several tasks.

    Attributes:
        features: Frozen features [H, M].
        task_index: Number [H] of each row's task.
        fit: Fit [H] of each row to its task's delta, 0 where it is not measured.
    """

    features: Tensor
    task_index: Tensor
    fit: Tensor

    @property
    def weights(self) -> Tensor:
        """Weight of each row [H]: the same sum for every task, 1 in all."""
        counts = torch.bincount(self.task_index)
        return 1.0 / (counts[self.task_index] * (counts > 0).sum())


def collect_held_out(
    tasks: Sequence[str], parts: Mapping[str, RoutingStatistics], *, features: Features
) -> HeldOutRows:
    """Collect the held-out rows of those tasks that have statistics.

    Args:
        tasks: Names of all tasks, in the order of their numbers.
        parts: Statistics by task name; tasks without any contribute no rows.
        features: Attribute of `FrozenFeatures` that the rows are taken from.

    Returns:
        The rows [H, M] with their task numbers and fits; empty where `parts` is.
    """
    if not parts:
        return HeldOutRows(torch.zeros(0, 1), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    numbered = [(number, parts[name]) for number, name in enumerate(tasks) if name in parts]
    rows = [getattr(part.held_out, features).float() for _, part in numbered]
    task_index = [torch.full((len(vectors),), number) for (number, _), vectors in zip(numbered, rows, strict=True)]
    fits = [
        part.evidence.held_out_fit if part.evidence else torch.zeros(len(vectors))
        for (_, part), vectors in zip(numbered, rows, strict=True)
    ]
    return HeldOutRows(torch.cat(rows), torch.cat(task_index), torch.cat(fits))


def calibrated_loss(scores: Tensor, rows: HeldOutRows) -> float:
    """Compute the cross entropy, in nats, of a rule's scores [H, K] after calibration on the same rows."""
    weights, offsets = fit_calibration([scores], rows)
    return float(_cross_entropy([weights[0] * scores, offsets], rows))


def fit_calibration(scores: Sequence[Tensor], rows: HeldOutRows) -> tuple[list[float], Tensor]:
    """Fit weights w ≥ 0 and offsets b that minimise the cross entropy of Σ_r w_r s_r + b on held-out rows.

    Offsets serve tasks whose scores overstate their distance from others, as where one task is broad; a penalty pulls
    them to zero. With a single task any weights are right.

    Args:
        scores: Scores [H, K] of each of R rules.
        rows: The H held-out rows.

    Returns:
        R weights, and offsets [K].
    """
    scales, num_tasks = [1.0 / max(float(s.std(dim=1, correction=0).mean()), 1e-12) for s in scores], scores[0].shape[1]
    if num_tasks == 1:
        return scales, torch.zeros(1)

    def loss_and_gradient(values: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.tensor(values, requires_grad=True)
        log_weights, offsets = parameters[: len(scores)], parameters[len(scores) :]
        weighted = [torch.exp(w) * scale * s for w, scale, s in zip(log_weights, scales, scores, strict=True)]
        loss = _cross_entropy([*weighted, offsets], rows) + OFFSET_PENALTY * offsets.square().mean()
        (gradient,) = torch.autograd.grad(loss, parameters)
        return float(loss.detach()), gradient.numpy()

    bound = float(np.log(LARGEST_WEIGHT))
    bounds = [(-bound, bound)] * len(scores) + [(None, None)] * num_tasks
    start = np.zeros(len(scores) + num_tasks)
    solution = minimize(loss_and_gradient, start, jac=True, bounds=bounds, method="L-BFGS-B").x
    weights = [float(np.exp(w)) * scale for w, scale in zip(solution[: len(scores)], scales, strict=True)]
    return weights, torch.from_numpy(solution[len(scores) :]).float()


def _cross_entropy(weighted: Sequence[Tensor], rows: HeldOutRows) -> Tensor:
    logits = sum((score.double() for score in weighted), torch.zeros(1, dtype=torch.float64))
    losses = F.cross_entropy(logits, rows.task_index, reduction="none", label_smoothing=SMOOTHING)
    return (losses * rows.weights).sum()
