"""Several deltas trained at once: one pass of the backbone for a batch of each.

    ∇ Σ_i L_i = (∇ L_1, …, ∇ L_n)

since the loss L_i of a task depends on its own rows and its own delta alone: every delta gets the gradient that it
would get by itself. Each has an optimiser of its own, so those that wait do not move, and each ends when it is done.

Shapes: B rows of all tasks, T tokens, D hidden size.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from continual.backbone import Backbone
from continual.deltas import Bank, Head, Mixed, attached, stack_of
from continual.errors import LearnError
from continual.features import joined, pad, pool
from continual.lesson import FromVectors
from continual.train import Spent, Stint, Trained, Training, alone, descend, seeded


@dataclass
class _Going:
    """A training and the stint it is at. stack: a number that those have in common which can lie in one stack."""

    name: str
    training: Training
    stint: Stint[Any]
    stack: int
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def batch(self) -> Any:
        return self.stint.batches[len(self.losses)]

    @property
    def lesson(self) -> FromVectors[Any]:
        assert self.stint.lesson.from_vectors is not None
        return self.stint.lesson.from_vectors

    @property
    def head(self) -> Head:
        assert self.stint.delta.head is not None
        return self.stint.delta.head


Ended = tuple[str, Trained | LearnError]


def train_together(backbone: Backbone, trainings: Mapping[str, Training], *, seed: int) -> Iterator[Ended]:
    """What becomes of each training, by name, as soon as it is done: what was trained, or why it could not be.

    Those whose loss does not follow from pooled vectors, or that change what all rows of a batch have in common, are
    trained by themselves. Texts of all others share their batches.
    """
    going: list[_Going] = []
    stacks: dict[object, int] = {}

    def on(name: str, training: Training, spent: Spent | None = None) -> Iterator[Ended]:
        """Bring a training to its next stint that can be done together with others, or to its end."""
        try:
            stint = next(training) if spent is None else training.send(spent)
            while not _shares(backbone, stint):
                stint = training.send(alone(backbone, stint))
        except StopIteration as end:
            yield name, end.value
        except LearnError as error:
            yield name, error
        else:
            going.append(_Going(name, training, stint, stacks.setdefault(stint.own.key, len(stacks))))
            going.sort(key=lambda own: own.stack)

    with seeded(seed):
        for name, training in trainings.items():
            yield from on(name, training)
        while going:
            for own, error in _step(backbone, going):
                going.remove(own)
                yield own.name, error
            for own in [own for own in going if len(own.losses) == len(own.stint.batches)]:
                going.remove(own)
                yield from on(own.name, own.training, Spent(own.losses, own.seconds))


def _shares(backbone: Backbone, stint: Stint[Any]) -> bool:
    return stint.lesson.from_vectors is not None and Bank.takes(backbone, stint.delta)


def _step(backbone: Backbone, going: Sequence[_Going]) -> list[tuple[_Going, LearnError]]:
    """One step of each training; those whose loss is no number fail, and move nothing."""
    began = time.perf_counter()
    try:
        failed = _at_once(backbone, going)
    except torch.OutOfMemoryError:
        for own in going:
            own.stint.optimise.forget()
        failed = None
    if failed is None:  # the exception holds on to memory
        failed = _one_by_one(backbone, going)
    for own in going:
        own.seconds += (time.perf_counter() - began) / len(going)
    return failed


def _at_once(backbone: Backbone, going: Sequence[_Going]) -> list[tuple[_Going, LearnError]]:
    failed, good = [], []
    with backbone.dropping():
        losses = _losses(backbone, going)
    for own, loss in zip(going, losses, strict=True):
        try:
            good.append((own, loss, own.stint.optimise.checked(loss)))
        except LearnError as error:
            failed.append((own, error))
    if good:
        torch.autograd.backward([loss for _, loss, _ in good])
    for own, _, value in good:
        own.losses.append(value)
        own.stint.optimise.step()
        own.stint.step()
    return failed


def _one_by_one(backbone: Backbone, going: Sequence[_Going]) -> list[tuple[_Going, LearnError]]:
    """The same step where the device's memory does not hold all of it."""
    failed = []
    for own in going:
        try:
            with attached(backbone, own.stint.delta), backbone.dropping():
                loss, _ = descend(backbone, own.stint, own.batch, halvings=0)
            own.losses.append(loss)
        except LearnError as error:
            failed.append((own, error))
    return failed


def _losses(backbone: Backbone, going: Sequence[_Going]) -> list[Tensor]:
    """The loss of each training's next batch, all from one pass."""
    texts = [own.lesson.tokens(own.batch) for own in going]
    counts = [len(own) for own in texts]
    batch = pad(backbone, joined(texts), range(sum(counts)))
    with attached(backbone, _mixed(going, counts)), backbone.precision():
        hidden = backbone.hidden_states(batch)
    mask, ways = batch["attention_mask"], {own.head.pooling for own in going}
    vectors = {way: torch.split(pool(hidden, mask, way), counts) for way in ways}
    return [
        own.stint.loss(backbone, own.lesson.loss(own.head, vectors[own.head.pooling][number], own.batch))
        for number, own in enumerate(going)
    ]


def _mixed(going: Sequence[_Going], counts: Sequence[int]) -> Mixed:
    """The mixture of a batch in which `counts` rows of each training follow each other."""
    shares = []
    for _, several in groupby(zip(going, counts, strict=True), key=lambda pair: pair[0].stack):
        members = list(several)
        pools = [torch.stack(same, dim=1) for same in zip(*(own.stint.pools for own, _ in members), strict=True)]
        slots = [slot for slot, (_, count) in enumerate(members) for _ in range(count)]
        shares.append((stack_of(members[0][0].stint.own, pools), slots))
    return Mixed(shares, sum(counts))
