"""Elastic weight consolidation: what mattered to earlier tasks is held where they left it."""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from continual.deltas import Delta
from continual.lesson import Lesson
from continual.strategies.importance import Importance, importance_of
from continual.strategies.state import State
from continual.strategies.strategy import Given, Step, Strategy, begun, own_lesson, shared, taught


@final
@dataclass(frozen=True, kw_only=True)
class Ewc(Strategy):
    """Sequential training with a penalty for moving away from what earlier tasks k left.

        loss + λ/2 Σ_k Σ_i F_k,i (θ_i − θ_k,i)²

    F_k is the diagonal empirical Fisher information at the end of task k, as a mean over `rows` of its train rows; the
    penalties of all tasks are summed, each about its own θ_k, as in the paper, none fades (that would be "online"
    EWC). θ is the body: heads of earlier tasks are not trained. strength: λ.
    Kirkpatrick et al. (2017), "Overcoming catastrophic forgetting in neural networks", arXiv:1612.00796.
    """

    strength: float
    rows: int = 200

    def learn(self, given: Given, state: State, number: int) -> Step:
        task, start = given.tasks[number], begun(given, number, state.body)
        lesson = own_lesson(given, number)
        if state.importance:
            lesson = held(lesson, state.importance.to(given.backbone.device), strength=self.strength)
        delta = taught(given, start, lesson, learning_rate=task.budget.learning_rate)
        order = torch.randperm(len(task.train.tokens), generator=torch.Generator().manual_seed(given.seed))
        own = importance_of(given.backbone, task.kind, delta, task.train, order[: self.rows].tolist())
        importance = state.importance.joined(own) if state.importance else own
        return shared(given, state, start, delta, (*state.heads, delta.head), importance=importance)


def held(lesson: Lesson[list[int]], importance: Importance, *, strength: float) -> Lesson[list[int]]:
    """The lesson with the penalty added to the loss of every batch."""

    def loss(delta: Delta, batch: list[int]) -> Tensor:
        return lesson.loss(delta, batch) + strength / 2 * importance.penalty(delta.values)

    return replace(lesson, loss=loss)
