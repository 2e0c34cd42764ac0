"""A model of its own for every task, each from the pretrained one: forgets nothing, and keeps everything."""

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
    """Fine-tuning of each task alone. Howard and Ruder (2018), arXiv:1801.06146."""

    def learn(self, given: StrategyContext, state: StrategyState, number: int) -> StrategyStep:
        rate = given.tasks[number].budget.learning_rate
        delta = fit(given, starting_delta(given, number, None), task_objective(given, number), learning_rate=rate)
        parameters, size = state.parameters + delta.parameter_count, state.size + delta.size
        after = replace(state, parameters=parameters, size=size)
        return StrategyStep(after, {number: delta})


@final
@dataclass(frozen=True, kw_only=True)
class SequentialFineTuning(Strategy):
    """Fine-tuning: each task goes on from where the one before left the body. Heads of earlier tasks stay as they are.

    McCloskey and Cohen (1989), "Catastrophic Interference in Connectionist Networks".
    """

    def learn(self, given: StrategyContext, state: StrategyState, number: int) -> StrategyStep:
        start = starting_delta(given, number, state.shared_delta)
        rate = given.tasks[number].budget.learning_rate
        delta = fit(given, start, task_objective(given, number), learning_rate=rate)
        return shared_step(given, state, start, delta, (*state.heads, delta.head))
