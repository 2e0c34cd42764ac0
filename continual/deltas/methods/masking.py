"""Binary masking: every weight is kept or dropped, by a learned bit.

Shapes: W [E, D] the weight of a projection.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.sites import Place
from continual.deltas.compose import Add
from continual.deltas.edit import Edit, Reads
from continual.deltas.method import MethodSettings, Preset, Sites
from continual.deltas.protocols import AffineMap, IdentityAtInit, Values

SCORE_RANGE = 0.1  # width of the interval that fresh scores are drawn from


class _StraightThroughMask(torch.autograd.Function):
    """1 where a score is at least zero, else 0; gradients pass unchanged (Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        return (scores >= 0).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


@dataclass(frozen=True)
class BinaryMask:
    """x (W ⊙ (M − 1))ᵀ: the change of x Wᵀ by dropping the weights where M [E, D] is zero.

    M is one where the scores [E, D] are at least zero. Final values are M, eight bits to the byte.

    Attributes:
        dropped: Fraction of the fresh scores below zero, in [0, 1).
    """

    dropped: float

    @property
    def identity(self) -> IdentityAtInit:
        """Exact where no weight is dropped at the start, else none."""
        return "none" if self.dropped else "exact"

    def supports(self, place: Place) -> bool:
        """Accept linear layers whose weight can be read."""
        return place.is_linear

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw scores [E, D] uniformly from an interval of width `SCORE_RANGE`."""
        drawn = torch.rand(place.weight.shape, generator=generator)
        return {"scores": SCORE_RANGE * (drawn - self.dropped)}

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [..., E] of `inputs` [..., D]."""
        return F.linear(inputs, self._change(values, place))

    def _change(self, values: Values, place: Place) -> Tensor:
        weight = place.weight
        mask: Tensor
        if "bits" in values:
            mask = _unpack_bits(values["bits"], weight)
        else:
            mask = _StraightThroughMask.apply(values["scores"])  # type: ignore[no-untyped-call]
        return weight * (mask - 1)

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        """Return the weight W ⊙ (M − 1) [E, D]."""
        return AffineMap(self._change(values, place), None)

    def finalize(self, values: Values, place: Place) -> dict[str, Tensor]:
        """Return the mask as bits [E, ⌈D / 8⌉] (uint8)."""
        if "bits" in values:
            return dict(values)
        return {"bits": torch.from_numpy(np.packbits((values["scores"] >= 0).cpu().numpy(), axis=1))}


def _unpack_bits(bits: Tensor, weight: Tensor) -> Tensor:
    """Return the mask [E, D] of packed bits [E, ⌈D / 8⌉], in the dtype of the weight [E, D]."""
    shifts = torch.arange(7, -1, -1, device=bits.device)
    mask = (bits.unsqueeze(-1) >> shifts) & 1
    return mask.flatten(1)[:, : weight.shape[1]].to(weight.dtype)


class BinaryMasking(MethodSettings):
    """Binary masking: y = x (M ⊙ W)ᵀ + b with a learned binary mask M and W frozen.

    The mask selects the weights that serve the task. Final parameters: one bit per weight of the sites. Zhao et al.
    (2020), "Masking as an Efficient Alternative to Finetuning for Pretrained Language Models", arXiv:2004.12406.

    Attributes:
        sites: Sites or groups of linear layers.
        dropped: Fraction of the weights that are dropped at the start.

    >>> BinaryMasking(sites=("attn.q",)).edits()[0].site
    'attn.q'
    """

    PRESETS: ClassVar[Mapping[str, Preset]] = {"paper": {"dropped": 0.05}}

    sites: Sites = ("projections",)
    dropped: float = Field(default=0.0, ge=0, lt=1, description="share of the weights that are dropped at the start")

    def edits(self) -> tuple[Edit, ...]:
        """Return one mask per site."""
        return tuple(Edit(site, BinaryMask(self.dropped), Reads.INPUT, Add()) for site in self.sites)
