"""Train one delta: one plain loop.

AdamW, linear warm-up and decay, gradients clipped, batches of like length, the best epoch on the validation rows kept;
epoch 0, the start itself, is a candidate, so training can only improve on the validation rows.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.backbone import Backbone
from continual.deltas import Delta, attached
from continual.errors import LearnError
from continual.evaluate import Prepared, metric_score, predict_classes
from continual.features import pad, pooled, shuffled_batches
from tasks import Budget

WARM_UP = 0.1  # share of the steps in which the learning rate rises
LARGEST_GRADIENT = 1.0

Report = Callable[[int, int], None]  # steps done, steps in all


@dataclass(frozen=True)
class Epoch:
    """One point of the learning curve: number (0 is the start), mean training loss in nats, validation score."""

    number: int
    loss: float | None
    score: float


@dataclass(frozen=True)
class Trained:
    """The delta of the best epoch, its learning curve, and what it took.

    seconds: time in training steps alone · examples_per_second: rows through them, None where there were none.
    """

    delta: Delta
    curve: tuple[Epoch, ...]
    seconds: float
    examples_per_second: float | None

    @property
    def score(self) -> float:
        return max(epoch.score for epoch in self.curve)


def train(
    backbone: Backbone,
    start: Delta,
    *,
    rows: Prepared,
    validation: Prepared,
    budget: Budget,
    metric: str,
    seed: int,
    report: Report = lambda done, total: None,
) -> Trained:
    """Train a copy of `start` on `rows` for `budget.epochs`; neither `start` nor the backbone changes.

    Raises LearnError when the loss is no longer a number.
    """
    delta = start.trainable(backbone.device)
    generator = torch.Generator().manual_seed(seed)
    epochs = [shuffled_batches(rows.tokens.lengths, budget.batch_size, generator) for _ in range(budget.epochs)]
    total = sum(len(batches) for batches in epochs)
    optimise = Optimiser(delta.tensors().values(), learning_rate=budget.learning_rate, steps=total)
    best, curve, seconds = start, [Epoch(0, None, _score(backbone, start, validation, metric))], 0.0
    for number, batches in enumerate(epochs, start=1):
        began = time.perf_counter()
        losses = []
        with attached(backbone, delta):
            for batch in batches:
                losses.append(optimise(batch_loss(backbone, delta, rows, batch)))
                report(optimise.done, total)
        seconds += time.perf_counter() - began
        curve.append(Epoch(number, sum(losses) / len(losses), _score(backbone, delta, validation, metric)))
        if curve[-1].score > max(epoch.score for epoch in curve[:-1]):
            best = delta.frozen()
    seen = len(rows) * budget.epochs
    return Trained(best, tuple(curve), seconds, seen / seconds if seconds else None)


def batch_loss(backbone: Backbone, delta: Delta, rows: Prepared, batch: Sequence[int]) -> Tensor:
    """Mean cross entropy in nats of the chosen rows, through the delta that is attached."""
    vectors = pooled(backbone, pad(backbone, rows.tokens, batch), delta.head.pooling)
    return F.cross_entropy(delta.head(vectors), rows.classes[batch].to(backbone.device))


class Optimiser:
    """AdamW without weight decay, whose learning rate rises for a tenth of the steps and falls linearly to zero."""

    def __init__(self, tensors: Iterable[Tensor], *, learning_rate: float, steps: int) -> None:
        self._tensors = list(tensors)
        self._adamw = torch.optim.AdamW(self._tensors, lr=learning_rate, weight_decay=0.0)
        rise = max(math.ceil(WARM_UP * steps), 1)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._adamw, lambda step: min((step + 1) / rise, max(steps - step, 0) / max(steps - rise, 1))
        )
        self.done = 0

    def __call__(self, loss: Tensor) -> float:
        """One step down the gradient of `loss`; the loss as a number.

        Raises LearnError for a loss that is not finite, before anything is changed by it.
        """
        value = loss.item()
        if not math.isfinite(value):
            raise LearnError(f"the training loss became {value} at step {self.done}; try a lower learning_rate")
        self._adamw.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self._tensors, LARGEST_GRADIENT)
        self._adamw.step()
        self._schedule.step()
        self.done += 1
        return value


def _score(backbone: Backbone, delta: Delta, rows: Prepared, metric: str) -> float:
    return metric_score(metric, rows.classes.tolist(), predict_classes(backbone, delta, rows))
