"""Learning in stints: what is to be trained next is said by one, and done by another.

Who learns knows epochs, scores and checkpoints, and yields stints; who does them, by themselves here, with those of
others in `together`, knows batches, gradients and memory, and sends what they came to.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, DeltaLayout, activation_checkpointing, attached, regularization_loss
from continual.errors import TrainingError
from continual.training.frozen_layers import FrozenLayerCache
from continual.training.objective import TrainingObjective
from continual.training.optimizer import AdamWWithSchedule

B = TypeVar("B")
T = TypeVar("T")

OUT_OF_MEMORY = (
    "the device's memory does not hold a training step of one row; use budget: {checkpointing: true}, a shorter "
    "max_length, a method that changes fewer or higher layers, dtype bfloat16, or a backbone of 8 or 4 bits (--bits)"
)


@dataclass(frozen=True)
class EpochRequest(Generic[B]):
    """Batches that a delta is to learn from, with a step of its optimiser after each.

    own, pools: where the delta's values lie, which are views of the pools · below: the layers that none of its edits
    reaches, where what they make of the texts is kept from one stint to the next.
    """

    backbone: Backbone
    delta: Delta
    layout: DeltaLayout
    pools: Sequence[Tensor]
    batches: Sequence[B]
    lesson: TrainingObjective[B]
    optimizer: AdamWWithSchedule
    step: Callable[[], None]
    below: FrozenLayerCache | None

    def loss(self, loss: Tensor) -> Tensor:
        """The loss of a batch with what the delta's edits add to it."""
        extra = regularization_loss(self.backbone, self.delta)
        return loss if extra is None else loss + extra


@dataclass(frozen=True)
class EpochResult:
    """What a stint came to: the loss of each batch, and the seconds it took."""

    losses: Sequence[float]
    seconds: float


TrainingCoroutine = Generator[EpochRequest[Any], EpochResult, T]  # what is learned in stints, and what comes of it


class Stopwatch:
    """The seconds of what is learned, those of others left out: from `seconds` on."""

    def __init__(self, seconds: float) -> None:
        self._before, self._since = seconds, time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._since

    def timed(self, stints: TrainingCoroutine[T]) -> TrainingCoroutine[T]:
        """The same stints, of which those seconds count that were spent on them."""
        try:
            stint = next(stints)
            while True:
                self._before = self.seconds
                spent = yield stint
                self._before, self._since = self._before + spent.seconds, time.perf_counter()
                stint = stints.send(spent)
        except StopIteration as end:
            found: T = end.value
            return found


def run_training(stints: TrainingCoroutine[T], *, seed: int) -> T:
    """Do all stints, and nothing else meanwhile; what comes of them."""
    with fork_rng(seed):
        try:
            stint = next(stints)
            while True:
                stint = stints.send(run_epoch(stint))
        except StopIteration as end:
            found: T = end.value
            return found


def run_epoch(stint: EpochRequest[B]) -> EpochResult:
    """Do a stint."""
    began, losses, halvings = time.perf_counter(), [], 0
    below = stint.below.use_cache() if stint.below else nullcontext()
    with below, attached(stint.backbone, stint.delta), training_mode(stint.backbone, again=stint.lesson.checkpointing):
        for batch in stint.batches:
            loss, halvings = training_step(stint, batch, halvings=halvings)
            losses.append(loss)
    return EpochResult(losses, time.perf_counter() - began)


@contextmanager
def training_mode(backbone: Backbone, *, again: bool) -> Iterator[None]:
    """Inside, dropout is at work, and what gradients need is kept of every layer or, `again`, computed twice."""
    with backbone.checkpoint_dropout(), activation_checkpointing(backbone) if again else nullcontext():
        yield


def training_step(stint: EpochRequest[B], batch: B, *, halvings: int) -> tuple[float, int]:
    """One step down the gradient of a batch, through what is attached: its loss, and how often it had to be halved.

        ∇ L = Σ_p s_p ∇ L_p

    for the parts p of a batch and the shares s_p that they have of its loss: where the device's memory does not hold a
    batch, it is halved, again and again, and the gradients of its parts are added up. Raises LearnError where not even
    single rows fit.
    """
    while True:
        parts = _parts(stint.lesson, batch, halvings)
        try:
            loss = sum(_added(stint, part, share) for part, share in parts)
            break
        except torch.OutOfMemoryError as error:
            if len(_parts(stint.lesson, batch, halvings + 1)) == len(parts):
                raise TrainingError(f"{OUT_OF_MEMORY} ({str(error).splitlines()[0]})") from None
        stint.optimizer.zero_grad()
        halvings += 1
    stint.optimizer.step()
    stint.step()
    return loss, halvings


def _added(stint: EpochRequest[B], part: B, share: float) -> float:
    """Add the gradient of a part of a batch, whose loss is this share of the batch's."""
    loss = share * stint.loss(stint.lesson.loss(stint.delta, part))
    value = stint.optimizer.require_finite(loss)
    torch.autograd.backward(loss)
    return value


def _parts(lesson: TrainingObjective[B], batch: B, halvings: int) -> list[tuple[B, float]]:
    parts = [(batch, 1.0)]
    for _ in range(halvings):
        parts = [
            (piece, share * own) for part, share in parts for piece, own in (lesson.split_batch(part) or [(part, 1.0)])
        ]
    return parts


@contextmanager
def fork_rng(seed: int) -> Iterator[None]:
    """What is drawn while training, dropout among it, is the same for the same seed; nobody else's numbers change."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
