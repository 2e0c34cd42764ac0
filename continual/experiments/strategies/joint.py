"""All tasks at once: the ceiling that continual learning is measured against."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import ClassVar, final

import torch
from torch import Tensor

from continual.deltas import Delta, Head
from continual.experiments.strategies.state import StrategyState, split_head, stack_heads
from continual.experiments.strategies.strategy import (
    Strategy,
    StrategyContext,
    StrategyStep,
    fit,
    shared_step,
    starting_delta,
)
from continual.features.tokens import shuffled_batches
from continual.training.objective import TrainingObjective, validation_score

Batch = tuple[int, list[int]]  # a task, and rows of it


@final
@dataclass(frozen=True, kw_only=True)
class JointTraining(Strategy):
    """Multi-task training of one body and a head for each task, batches of all tasks mixed.

    The stream's epochs; the epoch is kept whose mean score over all tasks' validation rows is best. With every weight
    trained it is what intransigence is measured against: Chaudhry et al. (2018), "Riemannian Walk for Incremental
    Learning", arXiv:1801.10112. Caruana (1997), "Multitask Learning".
    """

    trains_jointly: ClassVar[bool] = True

    def learn(self, given: StrategyContext, state: StrategyState, number: int) -> StrategyStep:
        starts = [starting_delta(given, i, None) for i in range(len(given.tasks))]
        heads = tuple(start.head for start in starts)
        start = replace(starts[-1], head=stack_heads(heads))
        delta = fit(given, start, interleaved_objective(given, heads), learning_rate=given.budget.learning_rate)
        return shared_step(given, state, start, delta, split_head(delta.head, heads))


def interleaved_objective(given: StrategyContext, heads: Sequence[Head | None]) -> TrainingObjective[Batch]:
    """Batches of one task each, of all tasks in an order that the seed draws."""
    generator = torch.Generator().manual_seed(given.seed)

    def epoch() -> list[Batch]:
        batches = [
            (number, batch)
            for number, task in enumerate(given.tasks)
            for batch in shuffled_batches(task.train.tokens.lengths, task.budget.batch_size, generator)
        ]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def loss(delta: Delta, batch: Batch) -> Tensor:
        number, rows = batch
        task = given.tasks[number]
        own = replace(delta, head=split_head(delta.head, heads)[number])
        return task.kind.loss(given.backbone, own, task.train, rows)

    def score(delta: Delta) -> float:
        own = split_head(delta.head, heads)
        return fmean(
            validation_score(
                given.backbone, t.kind, replace(delta, head=head), rows=t.validation, metric=t.data.spec.metric
            )
            for t, head in zip(given.tasks, own, strict=True)
        )

    epochs = [epoch() for _ in range(given.budget.epochs)]
    return TrainingObjective(
        epochs, given.budget.epochs * sum(len(task.train.tokens) for task in given.tasks), loss, score
    )
