"""Who wants to know how a run goes on."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class RunCallbacks:
    """What is told of a run while it goes on; every call begins with the task's name, or a strategy's.

    noted: what was done to its rows · began: its learning starts · step: so many training steps of so many are done ·
    waiting: nothing is free, and another controller holds it · learned: its delta is registered, by this run, an
    earlier one or another controller's, and the stream is measured as far as it goes · failed: learning it failed, and
    why; it may be tried again.
    """

    on_note: Callable[[str, str], None] = lambda task, note: None
    on_start: Callable[[str], None] = lambda task: None
    on_step: Callable[[str, int, int], None] = lambda task, done, total: None
    on_wait: Callable[[str, str], None] = lambda task, holder: None
    on_learned: Callable[[str, str], None] = lambda task, delta: None
    on_failed: Callable[[str, str], None] = lambda task, error: None


NO_CALLBACKS = RunCallbacks()
