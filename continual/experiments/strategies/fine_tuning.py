"""Plain fine-tuning: one model per task, or one model trained on task after task."""

from dataclasses import dataclass, replace
from typing import final

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


@final
@dataclass(frozen=True, kw_only=True)
class IndependentFineTuning(Strategy):
    """Fine-tunes the pretrained model separately for every task: no forgetting, most storage.

    Howard and Ruder (2018), "Universal Language Model Fine-tuning for Text Classification", arXiv:1801.06146.
    """

    def learn(self, context: StrategyContext, state: StrategyState, number: int) -> StrategyStep:
        """Train a fresh delta on the task; earlier tasks' answers do not change."""
        rate = context.tasks[number].budget.learning_rate
        start, objective = starting_delta(context, number, None), task_objective(context, number)
        trained = fit(context, start, objective, learning_rate=rate)
        delta = trained.delta
        parameters, size = state.parameters + delta.parameter_count, state.size + delta.size
        after = replace(state, parameters=parameters, size=size)
        return StrategyStep(after, {number: delta}, trained.best.number)


@final
@dataclass(frozen=True, kw_only=True)
class SequentialFineTuning(Strategy):
    """One model fine-tuned on task after task; heads of earlier tasks are not trained any more.

    McCloskey and Cohen (1989), "Catastrophic Interference in Connectionist Networks".
    """

    def learn(self, context: StrategyContext, state: StrategyState, number: int) -> StrategyStep:
        """Train the shared delta on the task, with a new head."""
        start = starting_delta(context, number, state.shared_delta)
        rate = context.tasks[number].budget.learning_rate
        trained = fit(context, start, task_objective(context, number), learning_rate=rate)
        return shared_step(context, state, start, trained, (*state.heads, trained.delta.head))
