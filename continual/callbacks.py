"""Callbacks for the progress of a run."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class RunCallbacks:
    """Functions that a run calls as it goes on, each with the name of a task, or of a strategy, first.

    Attributes:
        on_note: Task and note: something was done to its rows, such as carving a split.
        on_start: Task: its learning starts.
        on_step: Task, training steps done, and training steps in all.
        on_wait: Task and holder: no position is free, and another controller holds this one.
        on_learned: Task and delta: the delta is registered, by this run, an earlier one or another controller, and the
            stream is scored up to it.
        on_failed: Task and error: its learning failed; it may be tried again.
    """

    on_note: Callable[[str, str], None] = lambda task, note: None
    on_start: Callable[[str], None] = lambda task: None
    on_step: Callable[[str, int, int], None] = lambda task, done, total: None
    on_wait: Callable[[str, str], None] = lambda task, holder: None
    on_learned: Callable[[str, str], None] = lambda task, delta: None
    on_failed: Callable[[str, str], None] = lambda task, error: None


NO_CALLBACKS = RunCallbacks()
