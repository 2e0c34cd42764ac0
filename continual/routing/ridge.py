"""Ridge regression of the classes of all tasks on wide random features.

    W = (G + λ (tr G / M) I)⁻¹ B     s(x, t) = max over classes c of t of w_cᵀ x

with G the second moment of all tasks and column c of B the mean of class c times its share of its task's rows.
McDonnell et al. (2023), "RanPAC" (arXiv:2307.02251); every task counts the same here, whatever its number of rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from continual.routing.totals import Totals, by_task

PENALTIES = (1e-3, 1e-2)  # λ


@dataclass(frozen=True)
class Ridge:
    """weight W [M, C] · owner [C]: the number of each class's task · classes [K]: how many each task has."""

    weight: Tensor
    owner: Tensor

    def scores(self, features: Tensor) -> Tensor:
        return by_task(features @ self.weight, self.owner)

    def known(self, features: Tensor) -> Tensor:
        """The highest output: an input unlike any that was seen has none that is high."""
        return (features @ self.weight).amax(dim=1)


def ridge(totals: Totals) -> Iterator[Ridge]:
    """One for each λ."""
    targets = (totals.means * totals.shares.unsqueeze(1)).double().T
    scale = float(totals.moment.trace()) / len(totals.moment) or 1.0
    for penalty in PENALTIES:
        factor = torch.linalg.cholesky(totals.moment + penalty * scale * torch.eye(len(targets), dtype=torch.float64))
        yield Ridge(torch.cholesky_solve(targets, factor).float(), totals.owner)
