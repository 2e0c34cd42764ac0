"""Diff pruning: a sparse change of the weights, whose support is learned too.

Shapes: W [E, D] the weight of a projection.
"""

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
from continual.deltas.method import MethodSettings, Sites
from continual.deltas.protocols import AffineMap, IdentityAtInit, Values

# The hard concrete distribution of Louizos et al. (2018), "Learning Sparse Neural Networks through L0 Regularization",
# arXiv:1712.01312: a sigmoid of temperature β, stretched to (γ, ζ) and clamped to [0, 1]; constants of Guo et al.
BETA, GAMMA, ZETA = 1.0, -1.5, 1.5
INITIAL_LOG_ALPHA = 5.0  # log α of fresh gates: nearly all open


@dataclass(frozen=True)
class HardConcreteDiff:
    """x ΔWᵀ with ΔW = z ⊙ w [E, D] and hard concrete gates z; in the end its largest entries only.

    In training the gates, of parameters log α, are drawn; otherwise z is the mean gate, clamped to [0, 1]. The penalty
    is λ times the expected number of open gates, Σ σ(log α − β log(−γ / ζ)). Final values are the largest entries of ΔW
    by magnitude: `index`, their positions in the flattened W, and `difference`, which a second stage trains.

    Attributes:
        share: Fraction of the entries of ΔW in the final values, at least one entry.
        weight: λ, in nats per open gate.
    """

    identity: ClassVar[IdentityAtInit] = "exact"

    share: float
    weight: float

    def supports(self, place: Place) -> bool:
        """Accept linear layers whose weight can be read."""
        return place.is_linear

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return w [E, D], zero, and log α [E, D], nearly open."""
        shape = place.weight.shape
        return {"difference": torch.zeros(shape), "log_alpha": torch.full(shape, INITIAL_LOG_ALPHA)}

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [..., E] of `inputs` [..., D]."""
        return F.linear(inputs, self._change(values, place))

    def _change(self, values: Values, place: Place) -> Tensor:
        if "index" in values:
            shape = place.weight.shape
            zeros = torch.zeros(shape.numel(), device=place.weight.device)
            return zeros.scatter(0, values["index"].long(), values["difference"]).view(shape)
        return _gates(values["log_alpha"]) * values["difference"]

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        """Return the weight ΔW [E, D]."""
        return AffineMap(self._change(values, place), None)

    def penalty(self, values: Values) -> Tensor:
        """Compute λ · E[number of open gates], a scalar in nats; zero of final values."""
        if "index" in values:
            return values["difference"].new_zeros(())
        return self.weight * torch.sigmoid(values["log_alpha"] - BETA * math.log(-GAMMA / ZETA)).sum()

    def finalize(self, values: Values, place: Place) -> dict[str, Tensor]:
        """Return the K largest entries of ΔW: index [K] (int32) and difference [K]."""
        if "index" in values:
            return dict(values)
        change = (_gates(values["log_alpha"].detach()) * values["difference"].detach()).flatten()
        index = change.abs().topk(max(1, round(self.share * len(change)))).indices.sort().values
        return {"index": index.int(), "difference": change[index]}


def _gates(log_alpha: Tensor) -> Tensor:
    """Return gates [E, D]: drawn where log α [E, D] is trained, else their mean."""
    if not log_alpha.requires_grad:
        return (torch.sigmoid(log_alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
    noise = torch.rand_like(log_alpha).clamp(1e-6, 1 - 1e-6)
    soft = torch.sigmoid((torch.logit(noise) + log_alpha) / BETA)
    return (soft * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


class DiffPruning(MethodSettings):
    """Diff pruning: W + z ⊙ w at the projections, with few entries of z ⊙ w that are not zero.

    All entries are trained with gates first, then the share that remains.
    Final parameters: twice share · d_in · d_out per projection, half of them integers. Guo et al. (2021),
    "Parameter-Efficient Transfer Learning with Diff Pruning", arXiv:2012.07463.

    Attributes:
        share: Fraction of the entries that remains, of each matrix.
        penalty: λ, in nats per open gate.
        sites: Sites or groups of linear layers.

    >>> DiffPruning(share=0.01).stages
    2
    """

    share: float = Field(default=0.005, gt=0, le=1)
    penalty: float = Field(default=1.25e-7, ge=0, allow_inf_nan=False, description="λ, per open gate")
    sites: Sites = ("projections",)

    def edits(self) -> tuple[Edit, ...]:
        """Return one gated difference per site, trained in two stages."""
        form = HardConcreteDiff(self.share, self.penalty)
        return tuple(Edit(site, form, Reads.INPUT, Add(), stages=(0, 1)) for site in self.sites)
