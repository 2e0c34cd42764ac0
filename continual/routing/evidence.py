"""What a task's delta itself says of an input: how sure it is of its answer, and how well its features fit.

    fit(x) = (−½ min_c (x − μ_c)ᵀ C⁻¹ (x − μ_c) − a) / b

with class means μ and shared shrunk covariance C in the delta's own features, and a, b the mean and the standard
deviation of that on held-out rows of the task: 0 for an input like those, far below for one of another kind.

Shapes: C classes, D hidden size, N rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from continual.signature import shrunk_inverse, signature

SHRINKAGE = 0.1
_PREFIX = "evidence/"


@dataclass(frozen=True)
class Evidence:
    """means [C, D] · precision C⁻¹ [D, D] · centre, spread: a and b · sure: mean log probability of the answers to
    held-out rows, in nats · own [H]: fit of the held-out rows that are kept."""

    means: Tensor
    precision: Tensor
    centre: Tensor
    spread: Tensor
    sure: Tensor
    own: Tensor

    def fit(self, vectors: Tensor) -> Tensor:
        """fit(x) [N] of the delta's features [N, D], in standard deviations."""
        return (_likelihood(vectors, self.means, self.precision) - self.centre) / self.spread

    def tensors(self) -> dict[str, Tensor]:
        return {f"{_PREFIX}{name}": tensor for name, tensor in vars(self).items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Evidence | None":
        """What `tensors` gave; None where there is nothing."""
        found = {name.removeprefix(_PREFIX): value for name, value in tensors.items() if name.startswith(_PREFIX)}
        return cls(**found) if found else None


def evidence(rows: Tensor, classes: Tensor, *, count: int, held_out: Tensor, sure: Tensor) -> Evidence:
    """The evidence of a delta from train rows [N, D] and held-out rows [H, D] in its features.

    sure [H]: log probabilities of its answers to the held-out rows, where its kind has any.
    """
    own = signature(rows, classes, count=count)
    means = own.means.float()
    precision = shrunk_inverse(own.scatter, own.freedom, SHRINKAGE).float()
    fits = _likelihood(held_out, means, precision)
    centre, spread = fits.mean(), fits.std(correction=0).clamp_min(1e-6)
    surely = sure.mean() if len(sure) else torch.zeros(())
    return Evidence(means, precision, centre, spread, surely, (fits - centre) / spread)


def _likelihood(vectors: Tensor, means: Tensor, precision: Tensor) -> Tensor:
    """−½ of the squared distance to the nearest mean [N]."""
    whitener = torch.linalg.cholesky(precision)
    return -0.5 * torch.cdist(vectors @ whitener, means @ whitener).square().amin(dim=1)
