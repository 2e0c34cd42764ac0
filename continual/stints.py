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

from continual.backbone import Backbone
from continual.below import Below
from continual.deltas import Delta, Laid, attached, penalty, recomputed
from continual.errors import LearnError
from continual.lesson import Lesson
from continual.optimiser import Optimiser

B = TypeVar("B")
T = TypeVar("T")

OUT_OF_MEMORY = (
    "the device's memory does not hold a training step of one row; use budget: {checkpointing: true}, a shorter "
    "max_length, a method that changes fewer or higher layers, dtype bfloat16, or a backbone of 8 or 4 bits (--bits)"
)


@dataclass(frozen=True)
class Stint(Generic[B]):
    """Batches that a delta is to learn from, with a step of its optimiser after each.

    own, pools: where the delta's values lie, which are views of the pools · below: the layers that none of its edits
    reaches, where what they make of the texts is kept from one stint to the next.
    """

    backbone: Backbone
    delta: Delta
    own: Laid
    pools: Sequence[Tensor]
    batches: Sequence[B]
    lesson: Lesson[B]
    optimise: Optimiser
    step: Callable[[], None]
    below: Below | None

    def loss(self, loss: Tensor) -> Tensor:
        """The loss of a batch with what the delta's edits add to it."""
        extra = penalty(self.backbone, self.delta)
        return loss if extra is None else loss + extra


@dataclass(frozen=True)
class Spent:
    """What a stint came to: the loss of each batch, and the seconds it took."""

    losses: Sequence[float]
    seconds: float


Stints = Generator[Stint[Any], Spent, T]  # what is learned in stints, and what comes of it


class Clock:
    """The seconds of what is learned, those of others left out: from `seconds` on."""

    def __init__(self, seconds: float) -> None:
        self._before, self._since = seconds, time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._since

    def through(self, stints: Stints[T]) -> Stints[T]:
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


def by_itself(stints: Stints[T], *, seed: int) -> T:
    """Do all stints, and nothing else meanwhile; what comes of them."""
    with seeded(seed):
        try:
            stint = next(stints)
            while True:
                stint = stints.send(alone(stint))
        except StopIteration as end:
            found: T = end.value
            return found


def alone(stint: Stint[B]) -> Spent:
    """Do a stint."""
    began, losses, halvings = time.perf_counter(), [], 0
    below = stint.below.known() if stint.below else nullcontext()
    with below, attached(stint.backbone, stint.delta), training(stint.backbone, again=stint.lesson.checkpointing):
        for batch in stint.batches:
            loss, halvings = descend(stint, batch, halvings=halvings)
            losses.append(loss)
    return Spent(losses, time.perf_counter() - began)


@contextmanager
def training(backbone: Backbone, *, again: bool) -> Iterator[None]:
    """Inside, dropout is at work, and what gradients need is kept of every layer or, `again`, computed twice."""
    with backbone.dropping(), recomputed(backbone) if again else nullcontext():
        yield


def descend(stint: Stint[B], batch: B, *, halvings: int) -> tuple[float, int]:
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
                raise LearnError(f"{OUT_OF_MEMORY} ({str(error).splitlines()[0]})") from None
        stint.optimise.forget()
        halvings += 1
    stint.optimise.step()
    stint.step()
    return loss, halvings


def _added(stint: Stint[B], part: B, share: float) -> float:
    """Add the gradient of a part of a batch, whose loss is this share of the batch's."""
    loss = share * stint.loss(stint.lesson.loss(stint.delta, part))
    value = stint.optimise.checked(loss)
    torch.autograd.backward(loss)
    return value


def _parts(lesson: Lesson[B], batch: B, halvings: int) -> list[tuple[B, float]]:
    parts = [(batch, 1.0)]
    for _ in range(halvings):
        parts = [(piece, share * own) for part, share in parts for piece, own in (lesson.halves(part) or [(part, 1.0)])]
    return parts


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What is drawn while training, dropout among it, is the same for the same seed; nobody else's numbers change."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
