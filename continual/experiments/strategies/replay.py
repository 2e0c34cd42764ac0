"""Experience replay: a few rows of earlier tasks are learned again with every batch."""

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

Batch = tuple[list[int], int, list[int]]  # rows of the task, an earlier task, rows of its buffer


@final
@dataclass(frozen=True, kw_only=True)
class ExperienceReplay(Strategy):
    """Sequential training with a tiny episodic memory: a batch of an earlier task in every step.

        loss = (|B| L(B) + |M| L(M)) / (|B| + |M|)

    M is drawn from the buffer of one earlier task, itself drawn at random, and goes through that task's own head, which
    learns too. A buffer holds `rows` train rows in the proportions of the labels, but one of each label at least.
    Chaudhry et al. (2019), "On Tiny Episodic Memories in Continual Learning", arXiv:1902.10486.
    """

    rows: int = REPLAY_ROWS

    @property
    def options(self) -> Mapping[str, str]:
        """The learning rate of every weight, where that is trained, and the rows of a buffer."""
        return {**super().options, "replay_rows": "rows"}

    def learn(self, given: StrategyContext, state: StrategyState, number: int) -> StrategyStep:
        start, rate = starting_delta(given, number, state.shared_delta), given.tasks[number].budget.learning_rate
        heads = (*state.heads, start.head)
        buffers = [sample_buffer(task, self.rows, seed=given.seed) for task in given.tasks[: number + 1]]
        lesson = with_replay(given, task_objective(given, number), heads, buffers[:number])
        delta = fit(given, replace(start, head=stack_heads(heads)), lesson, learning_rate=rate)
        return shared_step(given, state, start, delta, split_head(delta.head, heads), kept=sum(map(_bytes, buffers)))


def sample_buffer(task: PreparedTask, rows: int, *, seed: int) -> LabelledTexts:
    """The train rows of a task that are kept."""
    return sample(task.data.train, max(rows, len(task.data.labels)), seed=seed, keep_labels=True)


def with_replay(
    given: StrategyContext,
    lesson: TrainingObjective[list[int]],
    heads: Sequence[Head | None],
    buffers: Sequence[LabelledTexts],
) -> TrainingObjective[Batch]:
    """A task's lesson with a batch of a buffer in every step; `heads` are the earlier tasks' and its own."""
    number, tasks = len(buffers), given.tasks
    kept: list[PreparedRows] = [
        task.kind.prepare(given.backbone, rows, max_length=task.budget.max_length)
        for task, rows in zip(tasks, buffers, strict=False)
    ]
    generator = torch.Generator().manual_seed(given.seed + number)

    def with_earlier(batch: list[int]) -> Batch:
        if not kept:
            return batch, 0, []
        earlier = int(torch.randint(len(kept), (), generator=generator))
        order = torch.randperm(len(kept[earlier].tokens), generator=generator)
        return batch, earlier, order[: tasks[number].budget.batch_size].tolist()

    def loss(delta: Delta, batch: Batch) -> Tensor:
        own, earlier, again = batch
        own_parts = split_head(delta.head, heads)
        new = lesson.loss(replace(delta, head=own_parts[number]), own)
        if not again:
            return new
        old = tasks[earlier].kind.loss(given.backbone, replace(delta, head=own_parts[earlier]), kept[earlier], again)
        return (len(own) * new + len(again) * old) / (len(own) + len(again))

    return TrainingObjective(
        [[with_earlier(batch) for batch in epoch] for epoch in lesson.epochs],
        lesson.rows,
        loss,
        score=lambda delta: lesson.score(replace(delta, head=split_head(delta.head, heads)[number])),
    )


def _bytes(rows: LabelledTexts) -> int:
    """What rows take as JSON."""
    return len(json.dumps([rows.texts, rows.targets], ensure_ascii=False).encode(errors="surrogatepass"))
