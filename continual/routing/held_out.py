"""Held-out rows of all tasks, on which a router's settings are chosen.

Every task counts the same, however many rows it has.

Shapes: H held-out rows of all tasks, M width of features, C classes of all tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from continual.routing.moments import WIDTH
from continual.routing.statistics import HELD_OUT, RoutingStatistics, evenly_spaced

MAX_HELD_OUT_ROWS = 8192  # of all tasks
TUNED_TASKS = 64  # at most so many tasks' rows choose the settings of a rule

Features = Literal["random_features", "pooled"]


@dataclass(frozen=True)
class HeldOutRows:
    """Held-out rows of several tasks.

    Attributes:
        features: Frozen features [H, M].
        task_index: Number [H] of each row's task.
        fit: Fit [H] of each row to its task's delta, 0 where it is not measured.
    """

    features: Tensor
    task_index: Tensor
    fit: Tensor

    @property
    def weights(self) -> Tensor:
        """Weight of each row [H]: the same sum for every task, 1 in all."""
        counts = torch.bincount(self.task_index)
        return 1.0 / (counts[self.task_index] * (counts > 0).sum())


@dataclass(frozen=True)
class TaskHeldOut:
    """Held-out rows of one task: features [H, M] and their fit [H] to the task's delta."""

    rows: Tensor
    fit: Tensor

    def thin(self, count: int) -> "TaskHeldOut":
        """Return at most `count` evenly spaced rows; fewer ones are always among more."""
        step = 1
        while -(-len(self.rows) // step) > count:
            step *= 2
        return self if step == 1 else TaskHeldOut(self.rows[::step].clone(), self.fit[::step].clone())


@dataclass(frozen=True)
class TuningSample:
    """Held-out rows of some tasks, with these tasks numbered anew.

    Attributes:
        classes: Numbers of the tasks' classes.
        task_of_class: Number of each of these classes' task.
        rows: The tasks' held-out rows.
    """

    classes: Tensor
    task_of_class: Tensor
    rows: HeldOutRows


def tuning_sample(task_of_class: Tensor, rows: HeldOutRows) -> TuningSample:
    """Return the held-out rows of at most TUNED_TASKS evenly spaced tasks, so that settings are chosen in bounded time.

    Args:
        task_of_class: Number [C] of each class's task.
        rows: Held-out rows of all tasks.
    """
    tasks = torch.unique(rows.task_index)
    tasks = tasks[evenly_spaced(len(tasks), TUNED_TASKS)]
    is_chosen = torch.isin(task_of_class, tasks)
    is_row = torch.isin(rows.task_index, tasks)
    subset = HeldOutRows(rows.features[is_row], torch.searchsorted(tasks, rows.task_index[is_row]), rows.fit[is_row])
    return TuningSample(
        is_chosen.nonzero().squeeze(1), torch.searchsorted(tasks, task_of_class[is_chosen].contiguous()), subset
    )


def rows_per_task(num_tasks: int) -> int:
    """Return how many held-out rows of each of so many tasks are used: a power of two, so that fewer are among more."""
    count = HELD_OUT
    while count > 1 and count * num_tasks > MAX_HELD_OUT_ROWS:
        count //= 2
    return count


def task_held_out(part: RoutingStatistics, *, features: Features, count: int = HELD_OUT) -> TaskHeldOut:
    """Return at most `count` held-out rows of a task, a power of two."""
    rows = getattr(part.held_out, features)[:, :WIDTH]
    fit = part.evidence.held_out_fit if part.evidence else torch.zeros(len(rows))
    return TaskHeldOut(rows, fit).thin(count)


def collect_held_out(
    tasks: Sequence[str], parts: Mapping[str, RoutingStatistics], *, features: Features
) -> HeldOutRows:
    """Collect the held-out rows of those tasks that have statistics; see `join_held_out`."""
    return join_held_out(tasks, {name: task_held_out(part, features=features) for name, part in parts.items()})


def join_held_out(tasks: Sequence[str], parts: Mapping[str, TaskHeldOut]) -> HeldOutRows:
    """Join the held-out rows of tasks.

    Args:
        tasks: Names of all tasks, in the order of their numbers.
        parts: Rows by task name; tasks without any contribute none.

    Returns:
        At most about MAX_HELD_OUT_ROWS rows [H, M] with their task numbers and fits; empty where `parts` is.
    """
    if not parts:
        return HeldOutRows(torch.zeros(0, 1), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    numbered = [(number, parts[name]) for number, name in enumerate(tasks) if name in parts]
    numbered = [numbered[i] for i in evenly_spaced(len(numbered), MAX_HELD_OUT_ROWS)]
    thinned = [(number, part.thin(rows_per_task(len(numbered)))) for number, part in numbered]
    task_index = [torch.full((len(part.rows),), number) for number, part in thinned]
    rows, fits = ([getattr(part, name).float() for _, part in thinned] for name in ("rows", "fit"))
    return HeldOutRows(torch.cat(rows), torch.cat(task_index), torch.cat(fits))
