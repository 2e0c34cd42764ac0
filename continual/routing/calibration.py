"""Fit a router's weights and offsets, and how sure it may be, on held-out rows.

    log p(t | x) = log softmax_t (Σ_r w_r s_r(x, t) + b_t)
    confidence = σ(a log p − d log(1 − p) + c),     p = max_t p(t | x)

The more tasks there are, the fewer rows each has, and the less its offset b_t can be trusted: how strongly offsets are
pulled to zero depends on the number of rows. a, d and c are fitted to whether the likeliest task of a row is its own,
each half of the rows judged by a fit to the other half: where some texts say nothing of their task, a router is at once
too sure of its high and too unsure of its low probabilities, and not by the same factor, so that neither a temperature
nor a logistic function mends it. Kull et al. (2017), "Beta calibration".

Shapes: H held-out rows of all tasks, K tasks, P candidate tasks, R rules.
"""

from collections.abc import Sequence
from math import exp
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from continual.routing.held_out import HeldOutRows

SMOOTHING = 0.001  # of labels: where all held-out rows are separated, no weight would be large enough
LARGEST_WEIGHT = 1e4
OFFSET_PENALTY = 1.28  # nats for an offset of one, beside the sum over the rows of a task
TINY = 1e-9
IDENTITY = (1.0, 1.0, 0.0)  # coefficients of a confidence that is the probability


class Calibration(NamedTuple):
    """What is fitted on held-out rows.

    Attributes:
        weights: R weights w of the rules' scores.
        offsets: Offsets b [K] of the tasks.
        curve: Coefficients (a, d, c) of the confidence.
    """

    weights: list[float]
    offsets: Tensor
    curve: tuple[float, float, float]


def recalibrate(log_p: Tensor, *, curve: tuple[float, float, float]) -> Tensor:
    """Return log-probabilities [N, K] whose highest of a row is calibrated, in the same order.

    The others share what is left in the same proportions.
    """
    if log_p.shape[1] == 1:
        return log_p
    best = log_p.double().topk(2, dim=1)
    first, second = best.values.exp().unbind(dim=1)
    rest = (1.0 - first).clamp_min(TINY)
    top = torch.sigmoid(_curve_terms(first) @ torch.tensor(curve, dtype=torch.float64))
    top = torch.maximum(top, second / (rest + second))
    scaled = log_p.double() + ((1.0 - top).clamp_min(TINY).log() - rest.log()).unsqueeze(1)
    return scaled.scatter(1, best.indices[:, :1], top.log().unsqueeze(1)).to(log_p.dtype)


def calibrated_loss(scores: Tensor, rows: HeldOutRows) -> float:
    """Compute the cross entropy, in nats, of a rule's scores [H, K] after calibration on the same rows."""
    calibration = _Calibration([scores], rows, None, scores.shape[1])
    return calibration.loss(calibration.fit(calibration.row_weights))


def fit_calibration(
    scores: Sequence[Tensor], rows: HeldOutRows, *, candidates: Tensor | None = None, num_tasks: int | None = None
) -> Calibration:
    """Fit weights w ≥ 0 and offsets b that minimise the cross entropy of Σ_r w_r s_r + b on held-out rows.

    Offsets serve tasks whose scores overstate their distance from others, as where one task is broad. With a single
    task any weights are right.

    Args:
        scores: Scores [H, K] of each of R rules, or [H, P] of candidate tasks.
        rows: The H held-out rows.
        candidates: Numbers [H, P] of the candidate tasks, −1 in places that are not used; all tasks by default.
        num_tasks: K, where there are candidates.
    """
    calibration = _Calibration(scores, rows, candidates, num_tasks or scores[0].shape[1])
    if calibration.num_tasks == 1:
        return Calibration(calibration.scales, torch.zeros(1), IDENTITY)
    values = calibration.fit(calibration.row_weights)
    weights = [exp(float(w)) * scale for w, scale in zip(values, calibration.scales, strict=False)]
    return Calibration(weights, values[len(scores) :].float(), calibration.fit_curve())


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

    def fit(self, row_weights: Tensor) -> Tensor:
        """Return the log weights and offsets [R + K] of least cross entropy, given the weights [H] of rows."""
        pull = OFFSET_PENALTY / (self._rows_per_task * float((row_weights > 0).double().mean()))

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

    def fit_curve(self) -> tuple[float, float, float]:
        """Return the coefficients of the confidence, each half of the rows judged by a fit to the other half."""
        is_even = torch.arange(len(self.row_weights)) % 2 == 0
        even, odd = (self._logits(self.fit(self.row_weights * ~held)) for held in (is_even, ~is_even))
        log_p = torch.log_softmax(torch.where(is_even.unsqueeze(1), even, odd), dim=1)
        best = log_p.max(dim=1)
        is_right = ((best.indices == self._place.squeeze(1)) & (self._is_right > 0)).double()
        terms, start = _curve_terms(best.values.exp()), torch.tensor(IDENTITY, dtype=torch.float64)

        def loss_and_gradient(values: np.ndarray) -> tuple[float, np.ndarray]:
            free = torch.tensor(values, requires_grad=True)
            losses = F.binary_cross_entropy_with_logits(terms @ free, is_right, reduction="none")
            pull = (free - start).square().sum() / len(terms)  # the weight of one row
            loss = (losses * self.row_weights).sum() + pull
            (gradient,) = torch.autograd.grad(loss, free)
            return float(loss.detach()), gradient.numpy()

        bounds = [(0.1, 3.0), (0.1, 3.0), (-3.0, 3.0)]
        first, second, constant = minimize(loss_and_gradient, IDENTITY, jac=True, bounds=bounds, method="L-BFGS-B").x
        return float(first), float(second), float(constant)

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


def _curve_terms(probabilities: Tensor) -> Tensor:
    """Return (log p, −log(1 − p), 1) [N, 3] of probabilities [N]."""
    p = probabilities.double().clamp(TINY, 1.0 - TINY)
    return torch.stack([p.log(), -torch.log1p(-p), torch.ones_like(p)], dim=1)


def _spread(scores: Tensor) -> Tensor:
    """Return the mean over rows of the standard deviation of their finite scores."""
    is_finite = scores.isfinite()
    count = is_finite.sum(dim=1).clamp_min(1)
    values = scores.masked_fill(~is_finite, 0.0)
    mean = values.sum(dim=1) / count
    squares = (values - mean.unsqueeze(1)).masked_fill(~is_finite, 0.0).square().sum(dim=1)
    return (squares / count).sqrt().mean()
