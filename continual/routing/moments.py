"""Sums over tasks that routing rules are solved from.

A task is added or removed without reading any other. Every task counts the same however many rows it has:

    G = Σ_t E_t[x xᵀ]     S = Σ_t C_t     m = Σ_t E_t[x]

with the mean E_t over a task's rows and its within-class covariance C_t in the leading features. Sums in float64 do not
depend on the order of tasks, up to rounding.

Shapes: C classes of all tasks, M width of features, L leading features, K tasks, N inputs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from continual.routing.statistics import TaskMoments

WIDTH = 6144  # random features that routers read, the leading ones: solving takes their cube in time
SOLVED_CLASSES = 4096  # whose weights are in memory in double precision at once
# Random features in which distances are taken: more hardly help.
LEADING_FEATURES = 2048


@dataclass(frozen=True)
class ClassMeans:
    """The classes of one task.

    Attributes:
        means: Class means [C, M] of the task's own C classes.
        shares: Share [C] of each class in the task's rows.
        counts: Rows [C] of each class.
    """

    means: Tensor
    shares: Tensor
    counts: Tensor

    def posterior_means(self, prior_rows: float, size: int) -> Tensor:
        """Return (n_c m_c + κ m_t) / (n_c + κ) [C, L] in the `size` leading features, for κ prior rows of the task."""
        means, counts = self.means[:, :size], self.counts.float().unsqueeze(1)
        return (counts * means + prior_rows * (self.shares.float() @ means)) / (counts + prior_rows)


@dataclass
class AccumulatedMoments:
    """Moments summed over tasks; empty until the first task is added.

    Attributes:
        moment: Second moment G [M, M].
        within: Within-class covariance S [L, L] with L = min(M, LEADING_FEATURES).
        total: Sum of means m [M].
        tasks: Classes by task name, in the order of task numbers.
    """

    moment: Tensor = field(default_factory=partial(torch.zeros, 0, 0))
    within: Tensor = field(default_factory=partial(torch.zeros, 0, 0))
    total: Tensor = field(default_factory=partial(torch.zeros, 0))
    tasks: dict[str, ClassMeans] = field(default_factory=dict)

    @classmethod
    def from_tasks(cls, parts: Mapping[str, TaskMoments]) -> Self:
        """Return the sums over at least one task, given by name."""
        totals = cls()
        totals.update_to(parts)
        return totals

    def update_to(self, parts: Mapping[str, TaskMoments]) -> None:
        """Add the tasks of `parts` that are new; start over where a counted task is no longer among them."""
        if self.tasks.keys() - parts.keys():
            self.tasks = {}
        for name in [name for name in parts if name not in self.tasks]:
            self.add(name, parts[name])

    def sorted_by_name(self) -> Self:
        """Return the same sums with tasks sorted by name, so that their numbers do not depend on arrival."""
        return replace(self, tasks=dict(sorted(self.tasks.items())))

    def add(self, name: str, part: TaskMoments) -> None:
        """Add a task with class means [C, M] and scatter [M, M]; the first one sets the width."""
        if not self.tasks:
            width = min(part.means.shape[1], WIDTH)
            sizes = ((width, width), (min(width, LEADING_FEATURES),) * 2, (width,))
            self.moment, self.within, self.total = (torch.zeros(size, dtype=torch.float64) for size in sizes)
        self._accumulate(part, 1.0)
        means = part.means[:, : len(self.moment)].float()
        self.tasks[name] = ClassMeans(means, part.counts / part.counts.sum(), part.counts)

    def remove(self, name: str, part: TaskMoments) -> None:
        """Remove a task; `part` must hold the moments it was added with."""
        self._accumulate(part, -1.0)
        del self.tasks[name]

    def _accumulate(self, part: TaskMoments, sign: float) -> None:
        size = len(self.moment)
        scatter, means, rows = part.leading_scatter(size), part.means[:, :size].double(), part.counts.sum()
        shares = part.counts / rows
        self.within.add_(scatter[: len(self.within), : len(self.within)], alpha=sign / part.degrees_of_freedom)
        self.moment.add_(scatter, alpha=sign / float(rows))
        self.moment.addmm_(means.T, shares.unsqueeze(1) * means, alpha=sign)
        self.total.add_(shares @ means, alpha=sign)

    @property
    def means(self) -> Tensor:
        """Class means of all tasks [C, M]."""
        return torch.cat([task.means for task in self.tasks.values()])

    def posterior_means(self, prior_rows: float, size: int) -> Tensor:
        """Return the class means of all tasks [C, L] as `ClassMeans.posterior_means` does."""
        return torch.cat([task.posterior_means(prior_rows, size) for task in self.tasks.values()])

    @property
    def shares(self) -> Tensor:
        """Share of each class in the rows of its task [C]."""
        return torch.cat([task.shares for task in self.tasks.values()])

    @property
    def task_of_class(self) -> Tensor:
        """Number of each class's task [C]."""
        return task_index_of_classes(task.shares for task in self.tasks.values())


def solve_in_parts(factor: Tensor, rows: Tensor) -> Tensor:
    """Solve A w = x for each row x of [C, M], in single precision, given the Cholesky factor [M, M] of A in double."""
    parts = [rows[i : i + SOLVED_CLASSES] for i in range(0, len(rows), SOLVED_CLASSES)]
    return torch.cat([torch.cholesky_solve(part.double().T, factor).T.float() for part in parts])


def task_index_of_classes(by_task: Iterable[Tensor]) -> Tensor:
    """Return the task number of every class [C], from one tensor per task with an entry per class."""
    sizes = torch.tensor([len(classes) for classes in by_task])
    return torch.repeat_interleave(torch.arange(len(sizes)), sizes)


def max_over_classes(scores: Tensor, task_of_class: Tensor) -> Tensor:
    """Return each task's highest score [N, K], from class scores [N, C] and their task numbers [C]."""
    best = torch.full((len(scores), int(task_of_class[-1]) + 1), -torch.inf, dtype=scores.dtype)
    return best.scatter_reduce_(1, task_of_class.expand(len(scores), -1), scores, "amax")
