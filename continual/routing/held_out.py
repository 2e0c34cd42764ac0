"""Held-out rows of tasks, on which all that routers can be set to is chosen; every task counts the same.

Shapes: H held-out rows of all tasks, K tasks, R rules.
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

SMOOTHING = 0.001  # where all held-out rows are told apart, no weight would be large enough
LARGEST_WEIGHT = 1e4
OFFSET_PENALTY = 1e-2  # nats for a mean square of offsets of one

Features = Literal["random_features", "pooled"]


@dataclass(frozen=True)
class HeldOutRows:
    """Held-out rows of tasks: features [H, M] · own [H]: each one's task · fit [H]: how it fits that task's delta, 0
    where that is not known."""

    features: Tensor
    task_index: Tensor
    fit: Tensor

    @property
    def weights(self) -> Tensor:
        """What each row counts [H], all tasks together 1."""
        counts = torch.bincount(self.task_index)
        return 1.0 / (counts[self.task_index] * (counts > 0).sum())


def collect_held_out(
    tasks: Sequence[str], parts: Mapping[str, RoutingStatistics], *, features: Features
) -> HeldOutRows:
    """The held-out rows of those tasks of which there are statistics."""
    if not parts:
        return HeldOutRows(torch.zeros(0, 1), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    known = [(number, parts[name]) for number, name in enumerate(tasks) if name in parts]
    rows = [getattr(part.held_out, features).float() for _, part in known]
    own = [torch.full((len(seen),), number) for (number, _), seen in zip(known, rows, strict=True)]
    fits = [
        part.evidence.held_out_fit if part.evidence else torch.zeros(len(seen))
        for (_, part), seen in zip(known, rows, strict=True)
    ]
    return HeldOutRows(torch.cat(rows), torch.cat(own), torch.cat(fits))


def calibrated_loss(scores: Tensor, rows: HeldOutRows) -> float:
    """The cross entropy of scores [H, K] of the held-out rows, in nats, fitted to them as well as they can be."""
    weights, offsets = fit_calibration([scores], rows)
    return float(_cross_entropy([weights[0] * scores, offsets], rows))


def fit_calibration(scores: Sequence[Tensor], rows: HeldOutRows) -> tuple[list[float], Tensor]:
    """The weights w ≥ 0 [R] and offsets [K] with which Σ w s + offset is best on held-out rows.

    Offsets are for tasks whose inputs are told from others by less than their scores say, as where one is broad; they
    are pulled to zero. Of one task any weights would do.
    """
    scales, count = [1.0 / max(float(s.std(dim=1, correction=0).mean()), 1e-12) for s in scores], scores[0].shape[1]
    if count == 1:
        return scales, torch.zeros(1)

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.tensor(flat, requires_grad=True)
        logs, offsets = free[: len(scores)], free[len(scores) :]
        weighted = [torch.exp(w) * k * s for w, k, s in zip(logs, scales, scores, strict=True)]
        found = _cross_entropy([*weighted, offsets], rows) + OFFSET_PENALTY * offsets.square().mean()
        (slope,) = torch.autograd.grad(found, free)
        return float(found.detach()), slope.numpy()

    bound = float(np.log(LARGEST_WEIGHT))
    bounds = [(-bound, bound)] * len(scores) + [(None, None)] * count
    found = minimize(value, np.zeros(len(scores) + count), jac=True, bounds=bounds, method="L-BFGS-B").x
    weights = [float(np.exp(w)) * k for w, k in zip(found[: len(scores)], scales, strict=True)]
    return weights, torch.from_numpy(found[len(scores) :]).float()


def _cross_entropy(weighted: Sequence[Tensor], rows: HeldOutRows) -> Tensor:
    logits = sum((score.double() for score in weighted), torch.zeros(1, dtype=torch.float64))
    each = F.cross_entropy(logits, rows.task_index, reduction="none", label_smoothing=SMOOTHING)
    return (each * rows.weights).sum()
