"""EWC: a quadratic penalty pulls parameters towards earlier tasks' optima.

The penalty is weighted by the diagonal Fisher information.
"""

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
    """Sequential training with a penalty for moving away from the optima θ_k of earlier tasks k.

        loss + λ/2 Σ_k Σ_i F_k,i (θ_i − θ_k,i)²

    F_k is the diagonal empirical Fisher information at the end of task k, as a mean over `rows` of its train rows. As
    in the paper the penalties of all tasks are summed, each about its own θ_k, and none decays (that would be "online"
    EWC). θ is the shared delta without its head: heads of earlier tasks are not trained.

    Kirkpatrick et al. (2017), "Overcoming catastrophic forgetting in neural networks", arXiv:1612.00796.

    Attributes:
        strength: λ.
        rows: The number of train rows that the Fisher information is estimated from.
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
        """The fields that a comparison may set: λ, and the learning rate where every weight is trained."""
        return {**super().options, "ewc_strength": "strength"}

    def learn(self, context: StrategyContext, state: StrategyState, number: int) -> StrategyStep:
        """Train on the task from the shared delta, with the penalty, then add the task's Fisher information."""
        task, start = context.tasks[number], starting_delta(context, number, state.shared_delta)
        objective = task_objective(context, number)
        if state.importance:
            objective = with_ewc_penalty(
                objective, state.importance.to(context.backbone.device), strength=self.strength
            )
        trained = fit(context, start, objective, learning_rate=task.budget.learning_rate)
        order = torch.randperm(len(task.train.tokens), generator=torch.Generator().manual_seed(context.seed))
        fisher = estimate_fisher(context.backbone, task.kind, trained.delta, task.train, order[: self.rows].tolist())
        importance = state.importance.merged_with(fisher) if state.importance else fisher
        heads = (*state.heads, trained.delta.head)
        return shared_step(context, state, start, trained, heads, importance=importance)


def with_ewc_penalty(
    objective: TrainingObjective[list[int]], importance: FisherImportance, *, strength: float
) -> TrainingObjective[list[int]]:
    """Return the objective with λ/2 times the penalty in the loss of every batch (λ: `strength`)."""

    def loss(delta: Delta, batch: list[int]) -> Tensor:
        return objective.loss(delta, batch) + strength / 2 * importance.penalty(delta.values)

    return replace(objective, loss=loss)
