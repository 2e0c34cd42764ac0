"""Propose candidate classes among very many by a projection that separates classes best.

    T = C^(−1/2) V     score(x, c) = (Tᵀ x)ᵀ (Tᵀ μ_c) − ½ ‖Tᵀ μ_c‖²

C is the within-class covariance of all tasks and V the leading eigenvectors of the total covariance after whitening by
C: Fisher's linear discriminant, in which Euclidean distance is Mahalanobis distance within the subspace that separates
classes most. The rules of routing are then evaluated for the proposed classes only. The projection is made of the
present tasks' sums alone, so that it depends neither on their order nor on tasks that were removed.

Shapes: N inputs, M width of features, L leading features, E dimensions of the projection, C classes of all tasks,
K tasks, Q candidate classes, P candidate tasks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from continual.features.signature import cholesky_factor, shrink_covariance
from continual.routing.moments import AccumulatedMoments

EXHAUSTIVE_CLASSES = 2048  # classes; up to this number comparing an input with all of them takes less time
CANDIDATE_CLASSES = 96  # Q
DIMENSIONS, ITERATIONS = 192, 6  # E, and iterations of the subspace, which converges at the rate of the eigenvalues
SHRINKAGE = 0.03
LARGEST_HALF = 1024.0  # largest value in half precision, whose smallest are some 10⁻⁸
BLOCK = 16  # classes whose maximum is compared first, since selecting from all is slower than scoring them


@dataclass(frozen=True)
class Candidates:
    """Candidate tasks of N inputs, with the classes that were proposed.

    Attributes:
        classes: Numbers [N, Q] of the proposed classes.
        tasks: Numbers [N, P] of their tasks, each once and ascending; −1 in places that are not used.
        place: Place [N, Q] of each class's task in `tasks`.
    """

    classes: Tensor
    tasks: Tensor
    place: Tensor

    @classmethod
    def of_classes(cls, classes: Tensor, task_of_class: Tensor) -> "Candidates":
        """Group proposed classes [N, Q] by their tasks, given the task number of every class [C]."""
        tasks, order = task_of_class[classes].sort(dim=1, stable=True)
        is_first = torch.ones_like(tasks, dtype=torch.bool)
        is_first[:, 1:] = tasks[:, 1:] != tasks[:, :-1]
        place = is_first.cumsum(dim=1) - 1
        width = int(place[:, -1].max()) + 1 if len(place) else 0
        unique = torch.full((len(classes), width), -1).scatter_(1, place, tasks)
        return cls(classes.gather(1, order), unique, place)

    def max_over_classes(self, scores: Tensor) -> Tensor:
        """Return each candidate task's highest score [N, P] from class scores [N, Q]; −∞ in places not used."""
        best = torch.full(self.tasks.shape, -torch.inf, dtype=scores.dtype)
        return best.scatter_reduce_(1, self.place, scores, "amax")


@dataclass(frozen=True)
class ClassWeights:
    """Weights of linear scores of all classes, in half precision where there are very many.

    Attributes:
        values: Weights [C, M] in units of `unit`.
        unit: A scalar that keeps the values within the range of half precision.
    """

    values: Tensor
    unit: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> "ClassWeights":
        """Return weights [C, M] as they are stored."""
        if len(weight) <= EXHAUSTIVE_CLASSES:
            return cls(weight.float().contiguous(), torch.ones(()))
        unit = (weight.abs().max() / LARGEST_HALF).float().clamp_min(1e-30)
        return cls((weight / unit).half().contiguous(), unit)

    def scores(self, features: Tensor, classes: Tensor | None) -> Tensor:
        """Compute xᵀ w of features [N, M]: [N, C], or [N, Q] for the classes [N, Q] of each input."""
        x = features[:, : self.values.shape[1]] * self.unit
        if classes is None:
            return x @ self.values.float().T
        scores = x.new_empty(classes.shape)
        for i in range(len(x)):  # the weights of one input's candidates fit the cache, those of several do not
            scores[i] = self.values.index_select(0, classes[i]).float() @ x[i]
        return scores


@dataclass(frozen=True)
class CandidateIndex:
    """Class means in the projection.

    Attributes:
        projection: T [L, E].
        codes: Tᵀ μ [C, E] of all classes.
        bias: −½ ‖Tᵀ μ‖² [C].
    """

    projection: Tensor
    codes: Tensor
    bias: Tensor

    def propose(self, features: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Return the numbers of the nearest classes [N, Q] of features [N, M].

        Args:
            features: Features of the inputs, of which the leading L are read.
            allowed: Which classes [C] may be proposed; by default all.
        """
        bias = self.bias if allowed is None else self.bias.masked_fill(~allowed, -torch.inf)
        scores = torch.addmm(bias, features[:, : len(self.projection)] @ self.projection, self.codes.T)
        available = scores.shape[1] if allowed is None else int(allowed.sum())
        return _top(scores, min(CANDIDATE_CLASSES, available))


def build_index(totals: AccumulatedMoments) -> CandidateIndex:
    """Compute the projection and the class means in it.

    Args:
        totals: Sums over tasks.
    """
    size, num_tasks = len(totals.within), len(totals.tasks)
    factor = cholesky_factor(shrink_covariance(totals.within, num_tasks, SHRINKAGE)).float()
    centre = (totals.total[:size] / num_tasks).float()
    covariance = (totals.moment[:size, :size] / num_tasks).float() - torch.outer(centre, centre)
    start = torch.randn(size, min(DIMENSIONS, size), generator=torch.Generator().manual_seed(0))
    basis, _ = torch.linalg.qr(start)
    for _ in range(ITERATIONS):
        unwhitened = torch.linalg.solve_triangular(factor.T, basis, upper=True)
        basis, _ = torch.linalg.qr(torch.linalg.solve_triangular(factor, covariance @ unwhitened, upper=False))
    projection = torch.linalg.solve_triangular(factor.T, basis, upper=True).contiguous()
    codes = torch.cat([task.means[:, :size].float() @ projection for task in totals.tasks.values()])
    return CandidateIndex(projection, codes, -0.5 * codes.square().sum(dim=1))


def _top(scores: Tensor, count: int) -> Tensor:
    """Return the numbers [N, count] of the highest scores of each row [N, C].

    The highest scores lie in the blocks of the highest maxima, of which there are fewer to select from.
    """
    num_inputs, num_classes = scores.shape
    num_blocks = num_classes // BLOCK
    if num_blocks <= count:
        return scores.topk(count, dim=1).indices
    blocks = scores[:, : num_blocks * BLOCK].view(num_inputs, num_blocks, BLOCK)
    chosen = blocks.amax(dim=2).topk(count, dim=1, sorted=False).indices
    numbers = (chosen.unsqueeze(2) * BLOCK + torch.arange(BLOCK)).flatten(1)
    rest = torch.arange(num_blocks * BLOCK, num_classes).expand(num_inputs, -1)
    numbers = torch.cat([numbers, rest], dim=1)
    return numbers.gather(1, scores.gather(1, numbers).topk(count, dim=1).indices)
