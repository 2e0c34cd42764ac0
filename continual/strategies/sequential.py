"""One body, trained on task after task, with a head for each: what most people do, and what forgets."""

from dataclasses import dataclass
from typing import final

from continual.strategies.state import StrategyState
from continual.strategies.strategy import (
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
class SequentialFineTuning(Strategy):
    """Fine-tuning: each task goes on from where the one before left the body. Heads of earlier tasks stay as they are.

    McCloskey and Cohen (1989), "Catastrophic Interference in Connectionist Networks".
    """

    def learn(self, given: StrategyContext, state: StrategyState, number: int) -> StrategyStep:
        start = starting_delta(given, number, state.shared_delta)
        rate = given.tasks[number].budget.learning_rate
        delta = fit(given, start, task_objective(given, number), learning_rate=rate)
        return shared_step(given, state, start, delta, (*state.heads, delta.head))
