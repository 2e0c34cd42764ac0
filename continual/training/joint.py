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

from continual.backbones.backbone import Backbone
from continual.deltas import Bank, Head, MixedBatch, attached, stack_deltas
from continual.errors import TrainingError
from continual.features.pooling import pool
from continual.features.tokens import Tokens, concat_tokens, pad
from continual.training.objective import PooledLoss
from continual.training.steps import (
    EpochRequest,
    EpochResult,
    TrainingCoroutine,
    fork_rng,
    run_epoch,
    training_mode,
    training_step,
)

T = TypeVar("T")


@dataclass
class _ActiveTraining:
    """Stints, and the one that is being done. stack: a number that those have in common which can lie in one stack."""

    name: str
    stints: TrainingCoroutine[Any]
    stint: EpochRequest[Any]
    stack: int
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def batch(self) -> Any:
        return self.stint.batches[len(self.losses)]

    @property
    def lesson(self) -> PooledLoss[Any]:
        assert self.stint.lesson.pooled_loss is not None
        return self.stint.lesson.pooled_loss

    @property
    def head(self) -> Head:
        assert self.stint.delta.head is not None
        return self.stint.delta.head


def train_jointly(stints: Mapping[str, TrainingCoroutine[T]], *, seed: int) -> Iterator[tuple[str, T | Exception]]:
    """What comes of each, by name, as soon as it is done: its result, or what it raised.

    Stints whose loss does not follow from pooled vectors, or whose delta changes what all rows of a batch have in
    common, are done by themselves, and so is what is left alone. Texts of all others share their batches.
    """
    going: list[_ActiveTraining] = []
    stacks: dict[object, int] = {}

    def on(
        name: str, own: TrainingCoroutine[T], done: Callable[[], EpochResult] | None = None
    ) -> Iterator[tuple[str, T | Exception]]:
        """Bring one to its next stint that can be done together with others, or to its end."""
        try:
            stint = next(own) if done is None else own.send(done())
            while not _shares(stint):
                stint = own.send(run_epoch(stint))
        except StopIteration as end:
            yield name, end.value
        except Exception as error:  # its own affair, which the caller is told of
            yield name, error
        else:
            going.append(_ActiveTraining(name, own, stint, stacks.setdefault(stint.layout.structure_key, len(stacks))))
            going.sort(key=lambda one: one.stack)

    with fork_rng(seed):
        for name, own in stints.items():
            yield from on(name, own)
        while going:
            if len(going) == 1 and not going[0].losses:
                one = going.pop()
                yield from on(one.name, one.stints, partial(run_epoch, one.stint))
                continue
            for one, error in _step(going):
                going.remove(one)
                yield one.name, error
            for one in [one for one in going if len(one.losses) == len(one.stint.batches)]:
                going.remove(one)
                yield from on(one.name, one.stints, partial(EpochResult, one.losses, one.seconds))


def _shares(stint: EpochRequest[Any]) -> bool:
    return stint.lesson.pooled_loss is not None and Bank.can_batch(stint.backbone, stint.delta)


def _step(going: Sequence[_ActiveTraining]) -> list[tuple[_ActiveTraining, TrainingError]]:
    """One step of each training; those whose loss is no number fail, and move nothing."""
    began = time.perf_counter()
    failed: list[tuple[_ActiveTraining, TrainingError]] | None
    try:
        failed = _at_once(going) if len(going) > 1 and _fit(going) else None
    except torch.OutOfMemoryError:
        for own in going:
            own.stint.optimizer.zero_grad()
        failed = None
    if failed is None:  # the exception, which holds on to memory, is gone by now
        failed = _one_by_one(going)
    for own in going:
        own.seconds += (time.perf_counter() - began) / len(going)
    return failed


def _fit(going: Sequence[_ActiveTraining]) -> bool:
    """Whether the backbone has positions for the longest text of all, behind the most tokens that a delta adds."""
    backbone = going[0].stint.backbone
    longest = max(max(own.lesson.tokens(own.batch).lengths) for own in going)
    added = max(own.stint.delta.settings.added_tokens for own in going)
    return longest + added <= backbone.longest_input + backbone.reserved_tokens


def _at_once(going: Sequence[_ActiveTraining]) -> list[tuple[_ActiveTraining, TrainingError]]:
    failed, good = [], []
    backbone = going[0].stint.backbone
    texts = [own.lesson.tokens(own.batch) for own in going]
    again = any(own.stint.lesson.checkpointing for own in going)
    with attached(backbone, _mixed(going, [*map(len, texts)])), training_mode(backbone, again=again):
        for own, loss in zip(going, _losses(backbone, going, texts), strict=True):
            try:
                good.append((own, loss, own.stint.optimizer.require_finite(loss)))
            except TrainingError as error:
                failed.append((own, error))
        if good:
            torch.autograd.backward([loss for _, loss, _ in good])
    for own, _, value in good:
        own.losses.append(value)
        own.stint.optimizer.step()
        own.stint.step()
    return failed


def _one_by_one(going: Sequence[_ActiveTraining]) -> list[tuple[_ActiveTraining, TrainingError]]:
    """The same step where the device's memory does not hold all of it."""
    failed = []
    for own in going:
        try:
            stint = own.stint
            with attached(stint.backbone, stint.delta), training_mode(stint.backbone, again=stint.lesson.checkpointing):
                loss, _ = training_step(own.stint, own.batch, halvings=0)
            own.losses.append(loss)
        except TrainingError as error:
            failed.append((own, error))
    return failed


def _losses(backbone: Backbone, going: Sequence[_ActiveTraining], texts: Sequence[Tokens]) -> list[Tensor]:
    """The loss of each training's next batch, all from one pass of their texts."""
    counts = [len(own) for own in texts]
    batch = pad(backbone, concat_tokens(texts), range(sum(counts)))
    with backbone.autocast():
        hidden = backbone.hidden_states(batch)
    mask, ways = batch["attention_mask"], {own.head.pooling for own in going}
    vectors = {way: torch.split(pool(hidden, mask, way), counts) for way in ways}
    return [
        own.stint.loss(own.lesson.loss(own.head, vectors[own.head.pooling][number], own.batch))
        for number, own in enumerate(going)
    ]


def _mixed(going: Sequence[_ActiveTraining], counts: Sequence[int]) -> MixedBatch:
    """The mixture of a batch in which `counts` rows of each training follow each other."""
    shares = []
    for _, several in groupby(zip(going, counts, strict=True), key=lambda pair: pair[0].stack):
        members = list(several)
        pools = [torch.stack(same, dim=1) for same in zip(*(own.stint.pools for own, _ in members), strict=True)]
        slots = [slot for slot, (_, count) in enumerate(members) for _ in range(count)]
        shares.append((stack_deltas(members[0][0].stint.layout, pools), slots))
    return MixedBatch(shares, sum(counts))
