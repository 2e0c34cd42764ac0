"""Train several deltas at once: one forward pass of the backbone for a batch of each.

    ∇ Σ_i L_i = (∇ L_1, …, ∇ L_n)

since the loss L_i of a task depends on its own rows and its own delta alone: every delta gets the gradient that it
would get by itself. Each has its own optimizer, so a delta that waits does not move, and each ends when it is done.

Shapes: B rows of all tasks, T tokens, D hidden size.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, Generic, TypeVar

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
    Trainable,
    TrainingCoroutine,
    fork_rng,
    run_epoch,
    training_mode,
    training_step,
)

T = TypeVar("T")


@dataclass
class _ActiveTraining(Generic[T]):
    """A training whose current epoch shares its batches with others.

    Attributes:
        name: The caller's name for it.
        coroutine: Yields its epochs.
        request: Its current epoch.
        stack: A number that trainings have in common whose deltas can be stacked.
        losses: The losses of the epoch's batches so far.
        seconds: Its share of the time of those steps.
    """

    name: str
    coroutine: TrainingCoroutine[T]
    request: EpochRequest[Any]
    stack: int
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def batch(self) -> Any:
        return self.request.batches[len(self.losses)]

    @property
    def pooled_loss(self) -> PooledLoss[Any]:
        assert self.request.objective.pooled_loss is not None
        return self.request.objective.pooled_loss

    @property
    def head(self) -> Head:
        assert self.request.delta.head is not None
        return self.request.delta.head


def train_jointly(runs: Mapping[str, Trainable[T]], *, seed: int) -> Iterator[tuple[str, T | Exception]]:
    """Train several runs at once, with random numbers drawn from the seed.

    A run whose loss is no function of pooled vectors, or whose delta changes a module that all rows of a batch share,
    is trained by itself, and so is the last one left. The texts of all others share their batches.

    Yields:
        The name of a run and its result, or the exception that it raised, as soon as it ends.
    """
    active: list[_ActiveTraining[T]] = []
    stacks: dict[object, int] = {}

    def advance(
        name: str, coroutine: TrainingCoroutine[T], epoch: Callable[[], EpochResult] | None = None
    ) -> Iterator[tuple[str, T | Exception]]:
        """Go on to the next epoch that can share batches, or to the end."""
        try:
            request = next(coroutine) if epoch is None else coroutine.send(epoch())
            while not _can_share_batches(request):
                request = coroutine.send(run_epoch(request))
        except StopIteration as end:
            yield name, end.value
        except Exception as error:  # ends this run alone; the caller gets it
            yield name, error
        else:
            stack = stacks.setdefault(request.layout.structure_key, len(stacks))
            active.append(_ActiveTraining(name, coroutine, request, stack))
            active.sort(key=lambda training: training.stack)

    with fork_rng(seed):
        for name, run in runs.items():
            yield from advance(name, run.epochs())
        while active:
            if len(active) == 1 and not active[0].losses:
                last = active.pop()
                yield from advance(last.name, last.coroutine, partial(run_epoch, last.request))
                continue
            for training, error in _step(active):
                active.remove(training)
                yield training.name, error
            for training in [training for training in active if len(training.losses) == len(training.request.batches)]:
                active.remove(training)
                result = partial(EpochResult, training.losses, training.seconds)
                yield from advance(training.name, training.coroutine, result)


def _can_share_batches(request: EpochRequest[Any]) -> bool:
    return request.objective.pooled_loss is not None and Bank.can_batch(request.backbone, request.delta)


def _step(active: Sequence[_ActiveTraining[T]]) -> list[tuple[_ActiveTraining[T], TrainingError]]:
    """Take one step of each training; return those whose loss is not finite, which change nothing."""
    started = time.perf_counter()
    failed: list[tuple[_ActiveTraining[T], TrainingError]] | None
    try:
        failed = _shared_step(active) if len(active) > 1 and _fits_positions(active) else None
    except torch.OutOfMemoryError:
        for training in active:
            training.request.optimizer.zero_grad()
        failed = None
    if failed is None:  # outside the handler: its exception would hold on to memory
        failed = _separate_steps(active)
    for training in active:
        training.seconds += (time.perf_counter() - started) / len(active)
    return failed


def _fits_positions(active: Sequence[_ActiveTraining[T]]) -> bool:
    """Whether the backbone has positions for the longest text behind the most tokens that a delta adds."""
    backbone = active[0].request.backbone
    longest = max(max(training.pooled_loss.tokens(training.batch).lengths) for training in active)
    added = max(training.request.delta.settings.added_tokens for training in active)
    return longest + added <= backbone.longest_input + backbone.reserved_tokens


def _shared_step(active: Sequence[_ActiveTraining[T]]) -> list[tuple[_ActiveTraining[T], TrainingError]]:
    failed, finite = [], []
    backbone = active[0].request.backbone
    texts = [training.pooled_loss.tokens(training.batch) for training in active]
    recompute = any(training.request.objective.checkpointing for training in active)
    with attached(backbone, _mixed_batch(active, [*map(len, texts)])), training_mode(backbone, recompute=recompute):
        for training, loss in zip(active, _losses(backbone, active, texts), strict=True):
            try:
                finite.append((training, loss, training.request.optimizer.require_finite(loss)))
            except TrainingError as error:
                failed.append((training, error))
        if finite:
            torch.autograd.backward([loss for _, loss, _ in finite])
    for training, _, value in finite:
        training.losses.append(value)
        training.request.optimizer.step()
        training.request.on_step()
    return failed


def _separate_steps(active: Sequence[_ActiveTraining[T]]) -> list[tuple[_ActiveTraining[T], TrainingError]]:
    """Take the step one delta after another, where the device's memory does not hold all rows."""
    failed = []
    for training in active:
        request = training.request
        recompute = request.objective.checkpointing
        try:
            with attached(request.backbone, request.delta), training_mode(request.backbone, recompute=recompute):
                loss, _ = training_step(request, training.batch, halvings=0)
            training.losses.append(loss)
        except TrainingError as error:
            failed.append((training, error))
    return failed


def _losses(backbone: Backbone, active: Sequence[_ActiveTraining[T]], texts: Sequence[Tokens]) -> list[Tensor]:
    """The loss of each training's next batch, a scalar, all from one forward pass."""
    counts = [len(tokens) for tokens in texts]
    batch = pad(backbone, concat_tokens(texts), range(sum(counts)))
    mask, readouts = batch["attention_mask"], {training.head.readout for training in active}
    with backbone.autocast():
        hidden = backbone.hidden_states_at(batch, {readout.layers for readout in readouts})
    vectors = {
        readout: torch.split(pool(hidden[readout.layers], mask, readout.pooling), counts) for readout in readouts
    }
    return [
        training.request.regularized(
            training.pooled_loss.loss(training.head, vectors[training.head.readout][index], training.batch)
        )
        for index, training in enumerate(active)
    ]


def _mixed_batch(active: Sequence[_ActiveTraining[T]], counts: Sequence[int]) -> MixedBatch:
    """The mixed batch in which `counts` rows of each training follow one another."""
    stacks = []
    for _, group in groupby(zip(active, counts, strict=True), key=lambda pair: pair[0].stack):
        members = list(group)
        pools = [torch.stack(pool, dim=1) for pool in zip(*(t.request.pools for t, _ in members), strict=True)]
        slots = [slot for slot, (_, count) in enumerate(members) for _ in range(count)]
        stacks.append((stack_deltas(members[0][0].request.layout, pools), slots))
    return MixedBatch(stacks, sum(counts))
