"""Mahalanobis routing among very many classes, by an index of class means.

The index proposes the nearest class means of an input, and exact distances rank the proposals. It holds class means
whitened by the covariance at the time it was built; the covariance of the present tasks decides among the proposals. So
adding or removing a task costs the time of its own classes, however many there are.

Shapes: C classes of all tasks, D size of features, N inputs, K tasks, P proposals.
"""

from math import gcd
from typing import Any

import numpy as np
import torch
from torch import Tensor

from continual.errors import RoutingError
from continual.features.signature import cholesky_factor, inverse_shrunk_covariance, without_rounding
from continual.routing.moments import AccumulatedMoments
from continual.routing.statistics import TaskMoments

CANDIDATE_CLASSES = 8  # P
PER_CELL, PROBED_CELLS = 128, 8  # class means in a cell of the index, and cells that are searched for an input
DIMENSIONS_PER_CODE = 2  # coded as one of 16 values; with 4 one mean in ten is missed where tasks crowd
INDEX_TRAINING_ROWS = 100_000  # class means from which cells and codes are learned


class ClassMeanIndex:
    """The rule of `mahalanobis` for a set of tasks that changes, with distances to proposed classes only.

    Attributes:
        totals: Sums over the tasks; `add` and `remove` change them in place.
        shrinkage: Shrinkage of both covariances towards a multiple of the identity.
        tasks: Names by task number; a removed task's name stays, and no input is routed to it.

    Raises:
        RoutingError: faiss is not installed.
    """

    def __init__(self, totals: AccumulatedMoments, shrinkage: float) -> None:
        self.totals, self.shrinkage = totals, shrinkage
        self.tasks = list(totals.tasks)
        self._means, self._task_of_class = totals.means, totals.task_of_class
        self._num_classes = len(totals.task_of_class)  # the tensors may have room for more
        self._update_metric()
        self._whitener = cholesky_factor(self._precision.double()).float()
        self._index = _build_index(self._means @ self._whitener)

    def add(self, name: str, part: TaskMoments) -> None:
        """Add a task as the last one.

        Args:
            name: Name of the task.
            part: Its class sizes, class means [C, D] and within-class scatter [D, D].
        """
        self.totals.add(name, part)
        means = part.means.float()
        self._reserve(len(means))
        new = slice(self._num_classes, self._num_classes + len(means))
        self._means[new], self._task_of_class[new] = means, len(self.tasks)
        self._num_classes += len(means)
        self.tasks.append(name)
        self._index.add((means @ self._whitener).numpy())
        self._update_metric()

    def remove(self, name: str, part: TaskMoments) -> None:
        """Remove a task; `part` must hold the moments it was added with."""
        self.totals.remove(name, part)
        self._task_of_class[self._task_of_class == self.tasks.index(name)] = -1
        self._update_metric()

    def scores(self, features: Tensor) -> Tensor:
        """Compute −½ d² of each input to each task, without the term xᵀ C⁻¹ x that all tasks share.

        Args:
            features: Frozen features [N, D].

        Returns:
            Scores [N, K]; a task without a proposed class gets the score of the farthest proposal.
        """
        task_index, closeness = self._propose(features)
        farthest = closeness.masked_fill(task_index < 0, torch.inf).amin(dim=1, keepdim=True)
        scores = farthest.expand(-1, len(self.tasks)).clone()
        return scores.scatter_reduce_(1, task_index.clamp_min(0), torch.maximum(closeness, farthest), "amax")

    def familiarity(self, features: Tensor) -> Tensor:
        """Compute −½ of the relative distance [N] of features [N, D] to their nearest class."""
        _, closeness = self._propose(features)
        square = ((features @ self._relative) * features).sum(dim=1)
        return closeness.amax(dim=1) - 0.5 * square - features @ self._slope + self._constant

    def _propose(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the task numbers of the nearest classes [N, P] and their −½ d² without xᵀ C⁻¹ x [N, P]."""
        _, class_numbers = self._index.search((features @ self._whitener).numpy(), CANDIDATE_CLASSES)
        classes = torch.from_numpy(class_numbers)
        # The searched cells may hold fewer than P means; faiss then fills with −1.
        task_index = torch.where(classes < 0, -1, self._task_of_class[classes.clamp_min(0)])
        unique, inverse = torch.unique(classes.clamp_min(0), return_inverse=True)
        means = self._means[unique]
        weight = means @ self._precision
        bias = -0.5 * (weight * means).sum(dim=1)
        closeness = torch.einsum("npd,nd->np", weight[inverse], features) + bias[inverse]
        return task_index, closeness.masked_fill(task_index < 0, -torch.inf)

    def _update_metric(self) -> None:
        """Compute C⁻¹ and C⁻¹ − C₀⁻¹ of the present tasks, and the terms of the relative distance."""
        totals, num_tasks = self.totals, len(self.totals.tasks)
        centre = totals.total / num_tasks
        precision = inverse_shrunk_covariance(totals.within, num_tasks, self.shrinkage)
        moment = totals.moment / num_tasks
        spread = without_rounding(moment - torch.outer(centre, centre), float(moment.trace()))
        background = inverse_shrunk_covariance(spread, 1.0, self.shrinkage)
        slope = background @ centre
        self._precision, self._relative = precision.float(), (precision - background).float()
        self._slope, self._constant = slope.float(), 0.5 * float(centre @ slope)

    def _reserve(self, extra: int) -> None:
        """Make room for `extra` more class means, doubling so that adding stays cheap."""
        if self._num_classes + extra > len(self._means):
            room = max(len(self._means), extra)
            self._means = torch.cat([self._means, self._means.new_empty(room, self._means.shape[1])])
            self._task_of_class = torch.cat([self._task_of_class, self._task_of_class.new_full((room,), -1)])


def _build_index(means: Tensor) -> Any:
    """Build an inverted file with product quantization of whitened class means [C, D]."""
    try:
        import faiss
    except ImportError as error:
        raise RoutingError(
            f"{len(means)} classes are routed to by an index, which is not installed; "
            "pip install 'continual-deltas[index]'"
        ) from error
    cells, size = max(len(means) // PER_CELL, 1), means.shape[1]
    index = faiss.IndexIVFPQFastScan(faiss.IndexFlatL2(size), size, cells, size // gcd(size, DIMENSIONS_PER_CODE), 4)
    index.cp.niter, index.nprobe = 4, PROBED_CELLS
    rows = means.numpy()
    index.train(rows[np.linspace(0, len(rows) - 1, min(len(rows), INDEX_TRAINING_ROWS)).round().astype(int)])
    index.add(rows)
    return index
