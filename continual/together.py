"""Several deltas trained at once: one pass of the backbone for a batch of each.

    ∇ Σ_i L_i = (∇ L_1, …, ∇ L_n)

since the loss L_i of a task depends on its own rows and its own delta alone: every delta gets the gradient that it
would get by itself. Each has an optimiser of its own, so those that wait do not move, and each ends when it is done.

Shapes: B rows of all tasks, T tokens, D hidden size.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor

from continual.backbone import Backbone
from continual.deltas import Bank, Head, Mixed, attached, stack_of
from continual.errors import LearnError
from continual.features import Tokens, joined, pad, pool
from continual.lesson import FromVectors
from continual.stints import Spent, Stint, Stints, alone, descend, seeded, training

T = TypeVar("T")


@dataclass
class _Going:
    """Stints, and the one that is being done. stack: a number that those have in common which can lie in one stack."""

    name: str
    stints: Stints[Any]
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


def train_together(stints: Mapping[str, Stints[T]], *, seed: int) -> Iterator[tuple[str, T | Exception]]:
    """What comes of each, by name, as soon as it is done: its result, or what it raised.

    Stints whose loss does not follow from pooled vectors, or whose delta changes what all rows of a batch have in
    common, are done by themselves, and so is what is left alone. Texts of all others share their batches.
    """
    going: list[_Going] = []
    stacks: dict[object, int] = {}

    def on(name: str, own: Stints[T], done: Callable[[], Spent] | None = None) -> Iterator[tuple[str, T | Exception]]:
        """Bring one to its next stint that can be done together with others, or to its end."""
        try:
            stint = next(own) if done is None else own.send(done())
            while not _shares(stint):
                stint = own.send(alone(stint))
        except StopIteration as end:
            yield name, end.value
        except Exception as error:  # its own affair, which the caller is told of
            yield name, error
        else:
            going.append(_Going(name, own, stint, stacks.setdefault(stint.own.key, len(stacks))))
            going.sort(key=lambda one: one.stack)

    with seeded(seed):
        for name, own in stints.items():
            yield from on(name, own)
        while going:
            if len(going) == 1 and not going[0].losses:
                one = going.pop()
                yield from on(one.name, one.stints, partial(alone, one.stint))
                continue
            for one, error in _step(going):
                going.remove(one)
                yield one.name, error
            for one in [one for one in going if len(one.losses) == len(one.stint.batches)]:
                going.remove(one)
                yield from on(one.name, one.stints, partial(Spent, one.losses, one.seconds))


def _shares(stint: Stint[Any]) -> bool:
    return stint.lesson.from_vectors is not None and Bank.takes(stint.backbone, stint.delta)


def _step(going: Sequence[_Going]) -> list[tuple[_Going, LearnError]]:
    """One step of each training; those whose loss is no number fail, and move nothing."""
    began = time.perf_counter()
    failed: list[tuple[_Going, LearnError]] | None
    try:
        failed = _at_once(going) if len(going) > 1 and _fit(going) else None
    except torch.OutOfMemoryError:
        for own in going:
            own.stint.optimise.forget()
        failed = None
    if failed is None:  # the exception, which holds on to memory, is gone by now
        failed = _one_by_one(going)
    for own in going:
        own.seconds += (time.perf_counter() - began) / len(going)
    return failed


def _fit(going: Sequence[_Going]) -> bool:
    """Whether the backbone has positions for the longest text of all, behind the most tokens that a delta adds."""
    backbone = going[0].stint.backbone
    longest = max(max(own.lesson.tokens(own.batch).lengths) for own in going)
    added = max(own.stint.delta.settings.added_tokens for own in going)
    return longest + added <= backbone.longest_input + backbone.reserved


def _at_once(going: Sequence[_Going]) -> list[tuple[_Going, LearnError]]:
    failed, good = [], []
    backbone = going[0].stint.backbone
    texts = [own.lesson.tokens(own.batch) for own in going]
    again = any(own.stint.lesson.checkpointing for own in going)
    with attached(backbone, _mixed(going, [*map(len, texts)])), training(backbone, again=again):
        for own, loss in zip(going, _losses(backbone, going, texts), strict=True):
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


def _one_by_one(going: Sequence[_Going]) -> list[tuple[_Going, LearnError]]:
    """The same step where the device's memory does not hold all of it."""
    failed = []
    for own in going:
        try:
            stint = own.stint
            with attached(stint.backbone, stint.delta), training(stint.backbone, again=stint.lesson.checkpointing):
                loss, _ = descend(own.stint, own.batch, halvings=0)
            own.losses.append(loss)
        except LearnError as error:
            failed.append((own, error))
    return failed


def _losses(backbone: Backbone, going: Sequence[_Going], texts: Sequence[Tokens]) -> list[Tensor]:
    """The loss of each training's next batch, all from one pass of their texts."""
    counts = [len(own) for own in texts]
    batch = pad(backbone, joined(texts), range(sum(counts)))
    with backbone.precision():
        hidden = backbone.hidden_states(batch)
    mask, ways = batch["attention_mask"], {own.head.pooling for own in going}
    vectors = {way: torch.split(pool(hidden, mask, way), counts) for way in ways}
    return [
        own.stint.loss(own.lesson.loss(own.head, vectors[own.head.pooling][number], own.batch))
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
