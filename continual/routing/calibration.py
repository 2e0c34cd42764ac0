"""Fit the weights of a router's rules and the offsets of its tasks on held-out rows.

    log p(t | x) = log softmax_t τ (Σ_r w_r s_r(x, t) + b_t)

The more tasks there are, the fewer rows each has, and the less its offset b_t can be trusted: how strongly offsets are
pulled to zero, and the temperature 1 / τ, are chosen by two-fold cross-validation. Without it, thousands of offsets
make a router too sure: Guo et al. (2017), "On Calibration of Modern Neural Networks" (arXiv:1706.04599).

Shapes: H held-out rows of all tasks, K tasks, P candidate tasks, R rules.
"""

from collections.abc import Sequence
from math import exp

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from continual.routing.held_out import HeldOutRows

SMOOTHING = 0.001  # of labels: where all held-out rows are separated, no weight would be large enough
LARGEST_WEIGHT = 1e4
OFFSET_PENALTIES = (1.28, 12.8, 128.0)  # nats for an offset of one, beside the sum over the rows of a task
MAX_LOG_TEMPERATURE = 3.0


def calibrated_loss(scores: Tensor, rows: HeldOutRows) -> float:
    """Compute the cross entropy, in nats, of a rule's scores [H, K] after calibration on the same rows."""
    calibration = _Calibration([scores], rows, None, scores.shape[1])
    return calibration.loss(calibration.fit(OFFSET_PENALTIES[0], calibration.row_weights))


def fit_calibration(
    scores: Sequence[Tensor], rows: HeldOutRows, *, candidates: Tensor | None = None, num_tasks: int | None = None
) -> tuple[list[float], Tensor]:
    """Fit weights w ≥ 0 and offsets b that minimise the cross entropy of τ (Σ_r w_r s_r + b) on held-out rows.

    Offsets serve tasks whose scores overstate their distance from others, as where one task is broad. With a single
    task any weights are right.

    Args:
        scores: Scores [H, K] of each of R rules, or [H, P] of candidate tasks.
        rows: The H held-out rows.
        candidates: Numbers [H, P] of the candidate tasks, −1 in places that are not used; all tasks by default.
        num_tasks: K, where there are candidates.

    Returns:
        R weights τ w, and offsets τ b [K].
    """
    calibration = _Calibration(scores, rows, candidates, num_tasks or scores[0].shape[1])
    if calibration.num_tasks == 1:
        return calibration.scales, torch.zeros(1)
    penalty, temperature = min(
        ((penalty, *calibration.validate(penalty)) for penalty in OFFSET_PENALTIES), key=lambda result: result[2]
    )[:2]
    values = calibration.fit(penalty, calibration.row_weights)
    weights = [exp(float(w)) * scale for w, scale in zip(values, calibration.scales, strict=False)]
    return [weight / temperature for weight in weights], values[len(scores) :].float() / temperature


class _Calibration:
    """The problem of fitting log weights [R] and offsets [K] to held-out rows."""

    def __init__(self, scores: Sequence[Tensor], rows: HeldOutRows, candidates: Tensor | None, num_tasks: int) -> None:
        self.num_tasks, self.row_weights = num_tasks, rows.weights.double()
        self.scales = [1.0 / max(float(_spread(score)), 1e-12) for score in scores]
        self._rows_per_task = len(rows.task_index) / len(torch.unique(rows.task_index))
        if candidates is None:
            self._tasks, self._is_unused = None, None
            self._place, self._is_right = rows.task_index.unsqueeze(1), torch.ones_like(self.row_weights)
        else:
            is_task = candidates == rows.task_index.unsqueeze(1)
            self._place, self._is_right = is_task.int().argmax(dim=1, keepdim=True), is_task.any(dim=1).double()
            self._tasks, self._is_unused = candidates.clamp_min(0), candidates < 0
        # Zeros in places that are not used, where no gradient could be taken.
        finite = [
            score.double() if self._is_unused is None else score.double().masked_fill(self._is_unused, 0.0)
            for score in scores
        ]
        self._scores = [score * scale for score, scale in zip(finite, self.scales, strict=True)]

    def fit(self, penalty: float, row_weights: Tensor) -> Tensor:
        """Return the log weights and offsets [R + K] of least cross entropy, given the weights [H] of rows."""
        pull = penalty / (self._rows_per_task * float((row_weights > 0).double().mean()))

        def loss_and_gradient(values: np.ndarray) -> tuple[float, np.ndarray]:
            parameters = torch.tensor(values, requires_grad=True)
            offsets = parameters[len(self._scores) :]
            losses = self._losses(self._logits(parameters))
            loss = (losses * row_weights).sum() / row_weights.sum() + pull * offsets.square().mean()
            (gradient,) = torch.autograd.grad(loss, parameters)
            return float(loss.detach()), gradient.numpy()

        bound = float(np.log(LARGEST_WEIGHT))
        bounds = [(-bound, bound)] * len(self._scores) + [(None, None)] * self.num_tasks
        start = np.zeros(len(self._scores) + self.num_tasks)
        return torch.from_numpy(minimize(loss_and_gradient, start, jac=True, bounds=bounds, method="L-BFGS-B").x)

    def validate(self, penalty: float) -> tuple[float, float]:
        """Return the temperature of least cross entropy on rows that were not fitted to, and that cross entropy."""
        is_even = torch.arange(len(self.row_weights)) % 2 == 0
        logits = torch.zeros(())
        for held in (is_even, ~is_even):
            fold = self._logits(self.fit(penalty, self.row_weights * ~held))
            logits = torch.where(held.unsqueeze(1), fold, logits)

        def loss(log_temperature: float) -> float:
            return float((self._losses(logits / exp(log_temperature)) * self.row_weights).sum())

        best = minimize_scalar(loss, bounds=(-MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE), method="bounded")
        return exp(float(best.x)), float(best.fun)

    def loss(self, values: Tensor) -> float:
        """Return the cross entropy of given log weights and offsets [R + K]."""
        return float((self._losses(self._logits(values)) * self.row_weights).sum())

    def _logits(self, values: Tensor) -> Tensor:
        weighted = [torch.exp(w) * score for w, score in zip(values, self._scores, strict=False)]
        offsets = values[len(self._scores) :]
        logits = torch.stack(weighted).sum(dim=0) + (offsets if self._tasks is None else offsets[self._tasks])
        return logits if self._is_unused is None else logits.masked_fill(self._is_unused, -torch.inf)

    def _losses(self, logits: Tensor) -> Tensor:
        """Return the cross entropy [H] with smoothed labels, and with uniform ones where no candidate is right."""
        log_p = torch.log_softmax(logits, dim=1)
        if self._is_unused is None:
            mean = log_p.mean(dim=1)
        else:
            mean = log_p.masked_fill(self._is_unused, 0.0).sum(dim=1) / (~self._is_unused).sum(dim=1)
        right = log_p.gather(1, self._place).squeeze(1).masked_fill(self._is_right == 0, 0.0)
        share = self._is_right * (1.0 - SMOOTHING)
        return -(share * right + (1.0 - share) * mean)


def _spread(scores: Tensor) -> Tensor:
    """Return the mean over rows of the standard deviation of their finite scores."""
    is_finite = scores.isfinite()
    count = is_finite.sum(dim=1).clamp_min(1)
    values = scores.masked_fill(~is_finite, 0.0)
    mean = values.sum(dim=1) / count
    squares = (values - mean.unsqueeze(1)).masked_fill(~is_finite, 0.0).square().sum(dim=1)
    return (squares / count).sqrt().mean()
