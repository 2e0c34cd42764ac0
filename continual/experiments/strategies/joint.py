"""Joint (multi-task) training on all tasks at once, or anew on all tasks so far: references for continual learning."""

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
from continual.training.objective import Evaluation, TrainingObjective, evaluate_delta

Batch = tuple[int, list[int]]  # a task's number and indices of its train rows


@final
@dataclass(frozen=True, kw_only=True)
class JointTraining(Strategy):
    """Multi-task training of one shared delta with a head for each task.

    Batches of all tasks come in random order. The training runs for the stream's epochs and returns the epoch with the
    best mean score over all tasks' validation rows. With every weight trained it is a reference for intransigence.

    Caruana (1997), "Multitask Learning"; Chaudhry et al. (2018), "Riemannian Walk for Incremental Learning",
    arXiv:1801.10112.
    """

    trains_jointly: ClassVar[bool] = True

    def learn(self, context: StrategyContext, state: StrategyState, number: int) -> StrategyStep:
        """Train on all tasks of the context at once."""
        return joint_step(context)


@final
@dataclass(frozen=True, kw_only=True)
class CumulativeTraining(Strategy):
    """Joint training anew, from the method's initial values, on all tasks up to each new one.

    T tasks take T (T + 1) / 2 times the training of one. After task k it is the reference model of intransigence as
    Chaudhry et al. (2018) define it, "Riemannian Walk for Incremental Learning", arXiv:1801.10112.
    """

    def learn(self, context: StrategyContext, state: StrategyState, number: int) -> StrategyStep:
        """Train on the tasks 0…`number` at once; nothing is taken from the state but R[i−1, i]."""
        step = joint_step(replace(context, tasks=context.tasks[: number + 1]))
        return replace(step, before=state.shared_delta and starting_delta(context, number, state.shared_delta))


def joint_step(context: StrategyContext) -> StrategyStep:
    """Train one shared delta, with a head for each task, on all tasks of the context at once."""
    starts = [starting_delta(context, i, None) for i in range(len(context.tasks))]
    heads = tuple(start.head for start in starts)
    start = replace(starts[-1], head=stack_heads(heads))
    trained = fit(context, start, interleaved_objective(context, heads), learning_rate=context.budget.learning_rate)
    return shared_step(context, StrategyState(), start, trained, split_head(trained.delta.head, heads))


def interleaved_objective(context: StrategyContext, heads: Sequence[Head | None]) -> TrainingObjective[Batch]:
    """Build the objective of all tasks: batches of one task each, in an order drawn by the seed.

    Args:
        context: The tasks, their budgets and the seed.
        heads: A head per task, in the tasks' order, as stacked in the delta that is trained.
    """
    generator = torch.Generator().manual_seed(context.seed)

    def epoch() -> list[Batch]:
        batches = [
            (number, batch)
            for number, task in enumerate(context.tasks)
            for batch in shuffled_batches(task.kind.row_lengths(task.train), task.budget.batch_size, generator)
        ]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def loss(delta: Delta, batch: Batch) -> Tensor:
        number, rows = batch
        task = context.tasks[number]
        task_delta = replace(delta, head=split_head(delta.head, heads)[number])
        return task.kind.loss(context.backbone, task_delta, task.train, rows)

    def evaluate(delta: Delta) -> Evaluation:
        results = [
            evaluate_delta(
                context.backbone, t.kind, replace(delta, head=head), rows=t.validation, metric=t.data.spec.metric
            )
            for t, head in zip(context.tasks, split_head(delta.head, heads), strict=True)
        ]
        return Evaluation(*map(fmean, zip(*results, strict=True)))

    epochs = [epoch() for _ in range(context.budget.epochs)]
    return TrainingObjective(
        epochs, context.budget.epochs * sum(len(task.train.tokens) for task in context.tasks), loss, evaluate
    )
