"""One body, trained on task after task, with a head for each: what most people do, and what forgets."""

from dataclasses import dataclass
from typing import final

from continual.strategies.state import State
from continual.strategies.strategy import Given, Step, Strategy, begun, own_lesson, shared, taught


@final
@dataclass(frozen=True, kw_only=True)
class Sequential(Strategy):
    """Fine-tuning: each task goes on from where the one before left the body. Heads of earlier tasks stay as they are.

    McCloskey and Cohen (1989), "Catastrophic Interference in Connectionist Networks".
    """

    def learn(self, given: Given, state: State, number: int) -> Step:
        start = begun(given, number, state.body)
        rate = given.tasks[number].budget.learning_rate
        delta = taught(given, start, own_lesson(given, number), learning_rate=rate)
        return shared(given, state, start, delta, (*state.heads, delta.head))
