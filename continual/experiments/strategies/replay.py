"""Experience replay: every training step adds a batch from a small buffer of an earlier task's rows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

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
    task_objective,
)
from continual.kinds import PreparedRows
from continual.learning.prepared import PreparedTask
from continual.settings import REPLAY_ROWS
from continual.training.objective import TrainingObjective
from tasks import LabelledTexts
from tasks.rows import sample

# indices of the task's train rows, an earlier task's number, indices of rows in its buffer
Batch = tuple[list[int], int, list[int]]


@final
@dataclass(frozen=True, kw_only=True)
class ExperienceReplay(Strategy):
    """Sequential training with a tiny episodic memory: each step adds a batch of an earlier task.

        loss = (|B| L(B) + |M| L(M)) / (|B| + |M|)

    B is a batch of the new task. M is drawn from the buffer of one earlier task, itself drawn at random, and goes
    through that task's own head, which is trained too. A buffer has the proportions of the labels, and at least one row
    of each.

    Chaudhry et al. (2019), "On Tiny Episodic Memories in Continual Learning", arXiv:1902.10486.

    Attributes:
        rows: The number of train rows in a task's buffer.
    """

    rows: int = REPLAY_ROWS

    @property
    def options(self) -> Mapping[str, str]:
        """The fields that a comparison may set: buffer rows, and the learning rate of all weights."""
        return {**super().options, "replay_rows": "rows"}

    def learn(self, context: StrategyContext, state: StrategyState, number: int) -> StrategyStep:
        """Train the shared delta on the task and on the buffers of earlier tasks."""
        start, rate = starting_delta(context, number, state.shared_delta), context.tasks[number].budget.learning_rate
        heads = (*state.heads, start.head)
        buffers = [sample_buffer(task, self.rows, seed=context.seed) for task in context.tasks[: number + 1]]
        objective = with_replay(context, task_objective(context, number), heads, buffers[:number])
        trained = fit(context, replace(start, head=stack_heads(heads)), objective, learning_rate=rate)
        heads = split_head(trained.delta.head, heads)
        return shared_step(context, state, start, trained, heads, extra_bytes=sum(map(_json_size, buffers)))


def sample_buffer(task: PreparedTask, rows: int, *, seed: int) -> LabelledTexts:
    """Draw the buffer of a task: train rows stratified by label, at least one per label."""
    return sample(task.data.train, max(rows, len(task.data.labels)), seed=seed, keep_labels=True)


def with_replay(
    context: StrategyContext,
    objective: TrainingObjective[list[int]],
    heads: Sequence[Head | None],
    buffers: Sequence[LabelledTexts],
) -> TrainingObjective[Batch]:
    """Add to every batch of a task's objective a batch from the buffer of a random earlier task.

    Args:
        context: The tasks and the seed.
        objective: The task's own objective.
        heads: The heads of the earlier tasks and, last, of the task, as stacked in the delta that is trained.
        buffers: The buffers of the earlier tasks, in order.
    """
    number, tasks = len(buffers), context.tasks
    replayed: list[PreparedRows] = [
        task.kind.prepare(context.backbone, rows, max_length=task.budget.max_length)
        for task, rows in zip(tasks, buffers, strict=False)
    ]
    generator = torch.Generator().manual_seed(context.seed + number)

    def add_replay_batch(batch: list[int]) -> Batch:
        if not replayed:
            return batch, 0, []
        earlier = int(torch.randint(len(replayed), (), generator=generator))
        order = torch.randperm(len(replayed[earlier].tokens), generator=generator)
        return batch, earlier, order[: tasks[number].budget.batch_size].tolist()

    def loss(delta: Delta, batch: Batch) -> Tensor:
        new_rows, earlier, old_rows = batch
        task_heads = split_head(delta.head, heads)
        new = objective.loss(replace(delta, head=task_heads[number]), new_rows)
        if not old_rows:
            return new
        earlier_delta = replace(delta, head=task_heads[earlier])
        old = tasks[earlier].kind.loss(context.backbone, earlier_delta, replayed[earlier], old_rows)
        return (len(new_rows) * new + len(old_rows) * old) / (len(new_rows) + len(old_rows))

    return TrainingObjective(
        [[add_replay_batch(batch) for batch in epoch] for epoch in objective.epochs],
        objective.rows,
        loss,
        evaluate=lambda delta: objective.evaluate(replace(delta, head=split_head(delta.head, heads)[number])),
    )


def _json_size(rows: LabelledTexts) -> int:
    """Return the bytes of the rows as JSON."""
    return len(json.dumps([rows.texts, rows.targets], ensure_ascii=False).encode(errors="surrogatepass"))
