"""Elastic weight consolidation: what mattered to earlier tasks is held where they left it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from continual.deltas import Delta
from continual.experiments.strategies.fisher import FisherImportance, estimate_fisher
from continual.experiments.strategies.state import StrategyState
from continual.experiments.strategies.strategy import (
    Strategy,
    StrategyContext,
    StrategyStep,
    fit,
    shared_step,
    starting_delta,
    task_objective,
)
from continual.settings import EWC_STRENGTH
from continual.training.objective import TrainingObjective
from tasks.errors import InputError


@final
@dataclass(frozen=True, kw_only=True)
class ElasticWeightConsolidation(Strategy):
    """Sequential training with a penalty for moving away from what earlier tasks k left.

        loss + λ/2 Σ_k Σ_i F_k,i (θ_i − θ_k,i)²

    F_k is the diagonal empirical Fisher information at the end of task k, as a mean over `rows` of its train rows; the
    penalties of all tasks are summed, each about its own θ_k, as in the paper, none fades (that would be "online"
    EWC). θ is the body: heads of earlier tasks are not trained. strength: λ.
    Kirkpatrick et al. (2017), "Overcoming catastrophic forgetting in neural networks", arXiv:1612.00796.
    """

    strength: float = EWC_STRENGTH
    rows: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.strength < math.inf:
            raise InputError(
                f"EWC's penalty counts 0 or more, and is finite; got {self.strength}. Give another --ewc-strength"
            )

    @property
    def options(self) -> Mapping[str, str]:
        """The learning rate of every weight, where that is trained, and λ."""
        return {**super().options, "ewc_strength": "strength"}

    def learn(self, given: StrategyContext, state: StrategyState, number: int) -> StrategyStep:
        task, start = given.tasks[number], starting_delta(given, number, state.shared_delta)
        lesson = task_objective(given, number)
        if state.importance:
            lesson = with_ewc_penalty(lesson, state.importance.to(given.backbone.device), strength=self.strength)
        delta = fit(given, start, lesson, learning_rate=task.budget.learning_rate)
        order = torch.randperm(len(task.train.tokens), generator=torch.Generator().manual_seed(given.seed))
        own = estimate_fisher(given.backbone, task.kind, delta, task.train, order[: self.rows].tolist())
        importance = state.importance.merged_with(own) if state.importance else own
        return shared_step(given, state, start, delta, (*state.heads, delta.head), importance=importance)


def with_ewc_penalty(
    lesson: TrainingObjective[list[int]], importance: FisherImportance, *, strength: float
) -> TrainingObjective[list[int]]:
    """The lesson with the penalty added to the loss of every batch."""

    def loss(delta: Delta, batch: list[int]) -> Tensor:
        return lesson.loss(delta, batch) + strength / 2 * importance.penalty(delta.values)

    return replace(lesson, loss=loss)
