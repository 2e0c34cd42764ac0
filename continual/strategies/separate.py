"""A model of its own for every task, each from the pretrained one: forgets nothing, and keeps everything."""

from dataclasses import dataclass, replace
from typing import final

from continual.strategies.state import StrategyState
from continual.strategies.strategy import Strategy, StrategyContext, StrategyStep, fit, starting_delta, task_objective


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
