"""Train one delta: one plain loop.

AdamW, linear warm-up and decay, gradients clipped, the checkpoint's own dropout, batches of like length, the best epoch
on the validation rows kept; epoch 0, the start itself, is a candidate, so training can only improve on those rows.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from continual.backbone import Backbone
from continual.deltas import Delta, attached, finished, penalty
from continual.errors import LearnError
from continual.evaluate import metric_score
from continual.features import shuffled_batches
from continual.kinds import Kind, Prepared, Seen, kind_of_delta, labels_of
from tasks import Budget

WARM_UP = 0.1  # share of the steps in which the learning rate rises
LARGEST_GRADIENT = 1.0

Report = Callable[[int, int], None]  # steps done, steps in all
Batches = list[list[int]]  # the batches of one epoch


@dataclass(frozen=True)
class Epoch:
    """One point of the learning curve: number (0 is the start), mean training loss, validation score."""

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

    What is learned follows from the kind of the delta. A method of several stages shares the epochs among them: each
    trains its own edits and the head, all else fixed, from the best epoch of the stage before. What is scored is
    what would be kept.

    Raises LearnError when the loss is no longer a number.
    """
    generator = torch.Generator().manual_seed(seed)
    epochs = [shuffled_batches(rows.tokens.lengths, budget.batch_size, generator) for _ in range(budget.epochs)]
    kind = kind_of_delta(start)
    score = partial(_score, backbone, kind, rows=validation, metric=metric)
    progress = _Progress(report, total=sum(map(len, epochs)))
    kept = finished(backbone, start, stage=0)
    best = _Point(kept, Epoch(0, None, score(kept)))
    curve, seconds, current = [best.epoch], 0.0, start
    with _seeded(seed):
        for stage, part in enumerate(_shares(epochs, start.settings.stages)):
            of_stage = None
            for delta, loss, spent in _epochs(
                backbone, kind, current, stage, rows, part, budget.learning_rate, progress
            ):
                point = _Point(delta, Epoch(len(curve), loss, score(delta)))
                of_stage = _better(point, of_stage) if of_stage else point  # of equals the one trained for longer
                best = _better(best, point)
                curve.append(point.epoch)
                seconds += spent
            current = of_stage.delta if of_stage else current
    seen = len(rows.tokens) * budget.epochs
    kept = finished(backbone, best.delta, stage=start.settings.stages - 1)  # stages that did not better it too
    return Trained(kept, tuple(curve), seconds, seen / seconds if seconds else None)


@dataclass(frozen=True)
class _Point:
    """A delta as it would be kept, and its point of the curve."""

    delta: Delta
    epoch: Epoch


def _better(one: _Point, other: _Point) -> _Point:
    """The one of the higher score, of equals the first."""
    return other if other.epoch.score > one.epoch.score else one


def _shares(epochs: Sequence[Batches], stages: int) -> list[Sequence[Batches]]:
    """The epochs of each stage: as even as can be, the earlier ones longer."""
    ends = [-(-len(epochs) * (stage + 1) // stages) for stage in range(stages)]
    return [epochs[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def _epochs(
    backbone: Backbone,
    kind: Kind[Any],
    start: Delta,
    stage: int,
    rows: Prepared,
    epochs: Sequence[Batches],
    learning_rate: float,
    progress: "_Progress",
) -> Iterator[tuple[Delta, float, float]]:
    """Train what belongs to a stage; after each epoch the delta as it would be kept, the mean loss and the seconds."""
    delta = start.trainable(backbone.device, stage)
    leaves = [tensor for tensor in delta.tensors().values() if tensor.requires_grad]
    optimise = Optimiser(leaves, learning_rate=learning_rate, steps=sum(map(len, epochs)))
    for batches in epochs:
        began, losses = time.perf_counter(), []
        with attached(backbone, delta), backbone.dropping():
            for batch in batches:
                loss, extra = kind.loss(backbone, delta, rows, batch), penalty(backbone, delta)
                losses.append(optimise(loss if extra is None else loss + extra))
                progress.step()
        spent = time.perf_counter() - began
        yield finished(backbone, delta.frozen(), stage=stage), sum(losses) / len(losses), spent


class _Progress:
    def __init__(self, report: Report, *, total: int) -> None:
        self._report, self._total, self._done = report, total, 0

    def step(self) -> None:
        self._done += 1
        self._report(self._done, self._total)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """What is drawn while training, dropout among it, is the same for the same seed; nobody else's numbers change."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


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


def _score(backbone: Backbone, kind: Kind[Any], delta: Delta, *, rows: Prepared, metric: str) -> float:
    outputs = kind.outputs(Seen(backbone, delta, rows), delta.head)
    answers = labels_of(kind.answers(backbone, outputs, rows))
    return metric_score(metric, rows.truth, answers, kind=kind.scored)
