"""The sums over tasks that routers are made of: a task is added, or taken out, without a look at any other.

Every task counts the same however many rows it has:

    G = Σ_t E_t[x xᵀ]     S = Σ_t C_t     m = Σ_t E_t[x]

with the mean E_t over a task's rows and its within-class covariance C_t in the leading features. Sums in float64 are
the same in whatever order tasks came, up to rounding. Shapes: C classes of all tasks, M width, K tasks.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from continual.routing.statistics import TaskMoments

LEADING_FEATURES = (
    2048  # features, of wide ones, in which distances are taken: more hardly help, and take their cube in time
)


@dataclass(frozen=True)
class ClassMeans:
    """A task's classes: means [C, M], and their shares [C] of the task's rows."""

    means: Tensor
    shares: Tensor


@dataclass
class AccumulatedMoments:
    """moment G [M, M] · within S [L, L], L = min(M, LEADING) · total m [M] · tasks: their classes, by name.

    Empty until the first task is added.
    """

    moment: Tensor = field(default_factory=partial(torch.zeros, 0, 0))
    within: Tensor = field(default_factory=partial(torch.zeros, 0, 0))
    total: Tensor = field(default_factory=partial(torch.zeros, 0))
    tasks: dict[str, ClassMeans] = field(default_factory=dict)

    @classmethod
    def from_tasks(cls, parts: Mapping[str, TaskMoments]) -> Self:
        """The sums over one task or more."""
        found = cls()
        found.update_to(parts)
        return found

    def update_to(self, parts: Mapping[str, TaskMoments]) -> None:
        """Add what is new in `parts`, or begin again where something that was added is not in it any more."""
        if self.tasks.keys() - parts.keys():
            self.tasks = {}
        for name in [name for name in parts if name not in self.tasks]:
            self.add(name, parts[name])

    def sorted_by_name(self) -> Self:
        """The same sums with the tasks by name: what is made of them is the same in whatever order they came."""
        return replace(self, tasks=dict(sorted(self.tasks.items())))

    def add(self, name: str, part: TaskMoments) -> None:
        """Count a task in; the first one begins the sums."""
        if not self.tasks:
            width = part.means.shape[1]
            sizes = ((width, width), (min(width, LEADING_FEATURES),) * 2, (width,))
            self.moment, self.within, self.total = (torch.zeros(size, dtype=torch.float64) for size in sizes)
        self._count(part, 1.0)
        self.tasks[name] = ClassMeans(part.means.float(), part.counts / part.counts.sum())

    def remove(self, name: str, part: TaskMoments) -> None:
        """Take out what `add` put in, given the same numbers again."""
        self._count(part, -1.0)
        del self.tasks[name]

    def _count(self, part: TaskMoments, sign: float) -> None:
        scatter, means, rows = part.scatter, part.means.double(), part.counts.sum()
        shares = part.counts / rows
        self.within.add_(scatter[: len(self.within), : len(self.within)], alpha=sign / part.degrees_of_freedom)
        self.moment.add_(scatter, alpha=sign / float(rows)).add_(means.T @ (shares.unsqueeze(1) * means), alpha=sign)
        self.total.add_(shares @ means, alpha=sign)

    @property
    def means(self) -> Tensor:
        """Class means of all tasks [C, M]."""
        return torch.cat([task.means for task in self.tasks.values()])

    @property
    def shares(self) -> Tensor:
        """The share of each class in its task [C]."""
        return torch.cat([task.shares for task in self.tasks.values()])

    @property
    def task_of_class(self) -> Tensor:
        """The number of each class's task [C]."""
        return task_index_of_classes(task.shares for task in self.tasks.values())


def task_index_of_classes(by_task: Iterable[Tensor]) -> Tensor:
    """The number of its task for every class [C], from one tensor of classes for each task."""
    sizes = torch.tensor([len(classes) for classes in by_task])
    return torch.repeat_interleave(torch.arange(len(sizes)), sizes)


def max_over_classes(scores: Tensor, owner: Tensor) -> Tensor:
    """Of scores [N, C] of classes the highest of each task [N, K]."""
    best = torch.full((len(scores), int(owner[-1]) + 1), -torch.inf, dtype=scores.dtype)
    return best.scatter_reduce_(1, owner.expand(len(scores), -1), scores, "amax")
