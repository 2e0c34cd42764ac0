"""Diff pruning: a sparse change of the weights, whose places are learned too."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.sites import Place
from continual.deltas.compose import Add
from continual.deltas.edit import Edit, Reads
from continual.deltas.method import MethodSettings
from continual.deltas.protocols import AffineMap, IdentityAtInit, Values

# The hard concrete distribution of Louizos et al. (2018), "Learning Sparse Neural Networks through L0 Regularization",
# arXiv:1712.01312: a sigmoid of temperature β, stretched to (γ, ζ) and cut to [0, 1]; the numbers are Guo et al.'s.
BETA, GAMMA, ZETA = 1.0, -1.5, 1.5
INITIAL_LOG_ALPHA = 5.0  # log α of fresh gates: nearly all open


@dataclass(frozen=True)
class HardConcreteDiff:
    """x ΔWᵀ with ΔW = z ⊙ w [E, D], the gates z hard concrete of parameters log α; then the largest entries alone.

    While values are trained the gates are drawn; otherwise z is the mean gate cut to [0, 1]. The penalty is λ times the
    expected number of open gates, Σ σ(log α − β log(−γ / ζ)). Kept: the `share` of ΔW that is largest in size, as their
    places `index` in W's rows one after the other, and `difference`, which a second stage trains.
    """

    identity: ClassVar[IdentityAtInit] = "exact"

    share: float
    weight: float

    def supports(self, place: Place) -> bool:
        return place.is_linear

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        shape = place.weight.shape
        return {"difference": torch.zeros(shape), "log_alpha": torch.full(shape, INITIAL_LOG_ALPHA)}

    def __call__(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        return F.linear(seen, self._change(values, place))

    def _change(self, values: Values, place: Place) -> Tensor:
        if "index" in values:
            shape = place.weight.shape
            empty = torch.zeros(shape.numel(), device=place.weight.device)
            return empty.scatter(0, values["index"].long(), values["difference"]).view(shape)
        return _gates(values["log_alpha"]) * values["difference"]

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        return AffineMap(self._change(values, place), None)

    def penalty(self, values: Values) -> Tensor:
        if "index" in values:
            return values["difference"].new_zeros(())
        return self.weight * torch.sigmoid(values["log_alpha"] - BETA * math.log(-GAMMA / ZETA)).sum()

    def finalize(self, values: Values, place: Place) -> dict[str, Tensor]:
        if "index" in values:
            return dict(values)
        change = (_gates(values["log_alpha"].detach()) * values["difference"].detach()).flatten()
        index = change.abs().topk(max(1, round(self.share * len(change)))).indices.sort().values
        return {"index": index.int(), "difference": change[index]}


def _gates(log_alpha: Tensor) -> Tensor:
    if not log_alpha.requires_grad:
        return (torch.sigmoid(log_alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
    noise = torch.rand_like(log_alpha).clamp(1e-6, 1 - 1e-6)
    soft = torch.sigmoid((torch.logit(noise) + log_alpha) / BETA)
    return (soft * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


class DiffPruning(MethodSettings):
    """W + z ⊙ w at the projections, few entries of it not zero: first all with gates, then the `share` that is left.

    Parameters as kept: twice share · d_in · d_out per projection, half of them whole numbers. Guo et al. (2021),
    "Parameter-Efficient Transfer Learning with Diff Pruning", arXiv:2012.07463; the share is taken of each matrix.

    >>> DiffPruning(share=0.01).stages
    2
    """

    share: float = Field(default=0.005, gt=0, le=1)
    penalty: float = Field(default=1.25e-7, ge=0, allow_inf_nan=False, description="λ, per open gate")
    sites: tuple[str, ...] = Field(default=("projections",), min_length=1)

    def edits(self) -> tuple[Edit, ...]:
        form = HardConcreteDiff(self.share, self.penalty)
        return tuple(Edit(site, form, Reads.INPUT, Add(), stages=(0, 1)) for site in self.sites)
