"""A training as a coroutine: it yields one `EpochRequest` per epoch and is sent back an `EpochResult`.

The coroutine (`TrainingRun.epochs`) handles epochs, scores and checkpoints. A scheduler, `run_training` for one
training or `train_jointly` for several whose tasks share batches, handles batches, gradients and memory.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.backbones.layers import activation_checkpointing
from continual.deltas import Delta, DeltaLayout, attached, regularization_loss
from continual.errors import TrainingError
from continual.training.frozen_layers import FrozenLayerCache
from continual.training.objective import TrainingObjective
from continual.training.optimizer import AdamWWithSchedule

B = TypeVar("B")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

OUT_OF_MEMORY = (
    "the device's memory does not hold a training step of one row; use budget: {checkpointing: true}, a shorter "
    "max_length, a method that changes fewer or higher layers, dtype bfloat16, or a backbone of 8 or 4 bits (--bits)"
)


@dataclass(frozen=True)
class EpochRequest(Generic[B]):
    """The batches of one epoch, and all that a scheduler needs to train on them.

    Attributes:
        backbone: The frozen backbone.
        delta: The delta to train; its values are views of `pools`.
        layout: Which value lies where in the pools.
        pools: The leaves to train: values of one name and shape stacked over layers, [L, ...].
        batches: The batches, one optimizer step each.
        objective: The loss of a batch.
        optimizer: The optimizer of the pools and the head.
        on_step: Called after each step.
        frozen_layers: Cached states of the layers below the lowest edit, where they are the same in every epoch.
    """

    backbone: Backbone
    delta: Delta
    layout: DeltaLayout
    pools: Sequence[Tensor]
    batches: Sequence[B]
    objective: TrainingObjective[B]
    optimizer: AdamWWithSchedule
    on_step: Callable[[], None]
    frozen_layers: FrozenLayerCache | None

    def regularized(self, loss: Tensor) -> Tensor:
        """Add the regularization terms of the delta's edits to a scalar loss."""
        penalty = regularization_loss(self.backbone, self.delta)
        return loss if penalty is None else loss + penalty


@dataclass(frozen=True)
class EpochResult:
    """The loss of each batch of an epoch, in nats, and the seconds that its steps took."""

    losses: Sequence[float]
    seconds: float


TrainingCoroutine = Generator[EpochRequest[Any], EpochResult, T]
"""Yields the epochs to train, is sent their results, and returns a T."""


class Trainable(Protocol[T_co]):
    """A unit of training for a scheduler: one delta (`TrainingRun`), or a whole task (`LearningRun`)."""

    def epochs(self) -> Generator[EpochRequest[Any], EpochResult, T_co]:
        """Yield the epochs to train; return the result."""
        ...


class Stopwatch:
    """Counts the seconds of one training, without those that a scheduler spends on others.

    Args:
        seconds: Seconds counted before, by the run that this one resumes.
    """

    def __init__(self, seconds: float) -> None:
        self._before, self._since = seconds, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._before + time.perf_counter() - self._since

    def timed(self, coroutine: TrainingCoroutine[T]) -> TrainingCoroutine[T]:
        """Yield from a coroutine; each epoch counts with the seconds that its result reports."""
        try:
            request = next(coroutine)
            while True:
                self._before = self.seconds
                result = yield request
                self._before, self._since = self._before + result.seconds, time.perf_counter()
                request = coroutine.send(result)
        except StopIteration as end:
            value: T = end.value
            return value


def run_training(run: Trainable[T], *, seed: int) -> T:
    """Train all epochs of one run, one after another, with random numbers drawn from the seed."""
    coroutine = run.epochs()
    with fork_rng(seed):
        try:
            request = next(coroutine)
            while True:
                request = coroutine.send(run_epoch(request))
        except StopIteration as end:
            value: T = end.value
            return value


def run_epoch(request: EpochRequest[B]) -> EpochResult:
    """Train one epoch of one delta.

    Raises:
        TrainingError: A loss is not finite, or the device's memory does not hold a step of a single row.
    """
    started, losses, halvings = time.perf_counter(), [], 0
    cache = request.frozen_layers.use_cache() if request.frozen_layers else nullcontext()
    recompute = request.objective.checkpointing
    with cache, attached(request.backbone, request.delta), training_mode(request.backbone, recompute=recompute):
        for batch in request.batches:
            loss, halvings = training_step(request, batch, halvings=halvings)
            losses.append(loss)
    return EpochResult(losses, time.perf_counter() - started)


@contextmanager
def training_mode(backbone: Backbone, *, recompute: bool) -> Iterator[None]:
    """Enable the checkpoint's dropout and, with `recompute`, activation checkpointing inside the block."""
    with backbone.checkpoint_dropout(), activation_checkpointing(backbone) if recompute else nullcontext():
        yield


def training_step(request: EpochRequest[B], batch: B, *, halvings: int) -> tuple[float, int]:
    """Take one optimizer step on a batch, halving it until the device's memory holds each part.

        ∇ L = Σ_p s_p ∇ L_p

    for the parts p of the batch and their shares s_p of its loss.

    Args:
        request: The epoch; its delta is attached to the backbone.
        batch: The batch.
        halvings: How often the batch is halved at first.

    Returns:
        The loss in nats, and how often the batch had to be halved.

    Raises:
        TrainingError: The loss is not finite, or not even single rows fit into memory.
    """
    while True:
        parts = _parts(request.objective, batch, halvings)
        try:
            loss = sum(_backward(request, part, share) for part, share in parts)
            break
        except torch.OutOfMemoryError as error:
            if len(_parts(request.objective, batch, halvings + 1)) == len(parts):
                raise TrainingError(f"{OUT_OF_MEMORY} ({str(error).splitlines()[0]})") from None
        request.optimizer.zero_grad()
        halvings += 1
    request.optimizer.step()
    request.on_step()
    return loss, halvings


def _backward(request: EpochRequest[B], part: B, share: float) -> float:
    """Add the gradient of a part of a batch that has this share of the batch's loss."""
    loss = share * request.regularized(request.objective.loss(request.delta, part))
    value = request.optimizer.require_finite(loss)
    torch.autograd.backward(loss)
    return value


def _parts(objective: TrainingObjective[B], batch: B, halvings: int) -> list[tuple[B, float]]:
    parts = [(batch, 1.0)]
    for _ in range(halvings):
        parts = [
            (half, share * half_share)
            for part, share in parts
            for half, half_share in (objective.split_batch(part) or [(part, 1.0)])
        ]
    return parts


@contextmanager
def fork_rng(seed: int) -> Iterator[None]:
    """Seed PyTorch's random numbers, dropout's among them, inside the block; restore their state after it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
