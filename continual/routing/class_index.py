"""Distances to very many class means: an index proposes, and what it proposes is measured exactly.

The index holds class means in the metric of the time it was built; the metric of today decides among the nearest of
them. So a task is added, or taken out, in the time of its own classes, however many there are.

Shapes: C classes of all tasks, D size of features, N inputs, P proposals.
"""

from math import gcd
from typing import Any

import numpy as np
import torch
from torch import Tensor

from continual.errors import RoutingError
from continual.features.signature import inverse_shrunk_covariance
from continual.routing.statistics import TaskMoments
from continual.routing.totals import AccumulatedMoments

CANDIDATE_CLASSES = 8
PER_CELL, PROBED_CELLS = 128, 8  # class means in a cell of the index, and cells that are searched for an input
DIMENSIONS_A_CODE = 2  # as one of 16 values, by which means are found; with 4 one in ten is missed where tasks crowd
INDEX_TRAINING_ROWS = 100_000  # class means from which cells and codes are learned


class ClassMeanIndex:
    """The rule of `mahalanobis`, over a set of tasks that changes.

    tasks: their names by number; that of a task that was taken out stays, and nothing goes there.

    Raises RoutingError where faiss is not installed.
    """

    def __init__(self, totals: AccumulatedMoments, shrinkage: float) -> None:
        self.totals, self.shrinkage = totals, shrinkage
        self.tasks = list(totals.tasks)
        self._means, self._task_of_class, self._size = totals.means, totals.task_of_class, len(totals.task_of_class)
        self._measure()
        self._whitener = torch.linalg.cholesky(self._precision.double()).float()
        self._index = _built(self._means @ self._whitener)

    def add(self, name: str, part: TaskMoments) -> None:
        """Count a task in, as the last one."""
        self.totals.add(name, part)
        means = part.means.float()
        self._make_room(len(means))
        new = slice(self._size, self._size + len(means))
        self._means[new], self._task_of_class[new] = means, len(self.tasks)
        self._size += len(means)
        self.tasks.append(name)
        self._index.add((means @ self._whitener).numpy())
        self._measure()

    def remove(self, name: str, part: TaskMoments) -> None:
        """Take out a task, given what it was added with."""
        self.totals.remove(name, part)
        self._task_of_class[self._task_of_class == self.tasks.index(name)] = -1
        self._measure()

    def scores(self, features: Tensor) -> Tensor:
        """−½ d² [N, K] but for xᵀ C⁻¹ x; of a task none of whose classes is proposed, that of the last proposal."""
        owners, closeness = self._proposed(features)
        last = closeness.masked_fill(owners < 0, torch.inf).amin(dim=1, keepdim=True)
        found = last.expand(-1, len(self.tasks)).clone()
        return found.scatter_reduce_(1, owners.clamp_min(0), torch.maximum(closeness, last), "amax")

    def familiarity(self, features: Tensor) -> Tensor:
        """−½ of the relative distance to the nearest class [N]."""
        _, closeness = self._proposed(features)
        square = ((features @ self._relative) * features).sum(dim=1)
        return closeness.amax(dim=1) - 0.5 * square - features @ self._slope + self._constant

    def _proposed(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The tasks of the nearest classes [N, P] and how near they are: −½ d² but for xᵀ C⁻¹ x."""
        _, found = self._index.search((features @ self._whitener).numpy(), CANDIDATE_CLASSES)
        classes = torch.from_numpy(found)
        owners = torch.where(classes < 0, -1, self._task_of_class[classes.clamp_min(0)])  # a cell may hold too few
        unique, place = torch.unique(classes.clamp_min(0), return_inverse=True)
        means = self._means[unique]
        weight = means @ self._precision
        bias = -0.5 * (weight * means).sum(dim=1)
        closeness = torch.einsum("npd,nd->np", weight[place], features) + bias[place]
        return owners, closeness.masked_fill(owners < 0, -torch.inf)

    def _measure(self) -> None:
        """The metric of the tasks as they are now."""
        totals, count = self.totals, len(self.totals.tasks)
        centre = totals.total / count
        own = inverse_shrunk_covariance(totals.within, count, self.shrinkage)
        background = inverse_shrunk_covariance(totals.moment / count - torch.outer(centre, centre), 1.0, self.shrinkage)
        slope = background @ centre
        self._precision, self._relative = own.float(), (own - background).float()
        self._slope, self._constant = slope.float(), 0.5 * float(centre @ slope)

    def _make_room(self, more: int) -> None:
        if self._size + more > len(self._means):
            room = max(len(self._means), more)
            self._means = torch.cat([self._means, self._means.new_empty(room, self._means.shape[1])])
            self._task_of_class = torch.cat([self._task_of_class, self._task_of_class.new_full((room,), -1)])


def _built(means: Tensor) -> Any:
    """An inverted file of whitened class means [C, D]."""
    try:
        import faiss
    except ImportError as error:
        raise RoutingError(
            f"{len(means)} classes are routed to by an index, which is not installed; pip install 'continual[index]'"
        ) from error
    cells, size = max(len(means) // PER_CELL, 1), means.shape[1]
    index = faiss.IndexIVFPQFastScan(faiss.IndexFlatL2(size), size, cells, size // gcd(size, DIMENSIONS_A_CODE), 4)
    index.cp.niter, index.nprobe = 4, PROBED_CELLS
    rows = means.numpy()
    index.train(rows[np.linspace(0, len(rows) - 1, min(len(rows), INDEX_TRAINING_ROWS)).round().astype(int)])
    index.add(rows)
    return index
