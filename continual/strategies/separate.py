"""A model of its own for every task, each from the pretrained one: forgets nothing, and keeps everything."""

from dataclasses import dataclass, replace
from typing import final

from continual.strategies.state import State
from continual.strategies.strategy import Given, Step, Strategy, begun, own_lesson, taught


@final
@dataclass(frozen=True, kw_only=True)
class Separate(Strategy):
    """Fine-tuning of each task alone. Howard and Ruder (2018), arXiv:1801.06146."""

    def learn(self, given: Given, state: State, number: int) -> Step:
        rate = given.tasks[number].budget.learning_rate
        delta = taught(given, begun(given, number, None), own_lesson(given, number), learning_rate=rate)
        parameters, size = state.parameters + delta.parameter_count, state.size + delta.size
        after = replace(state, parameters=parameters, size=size)
        return Step(after, {number: delta})
