"""Masking: weights kept or dropped, each by a bit that is learned."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.sites import Place
from continual.deltas.compose import Add
from continual.deltas.edit import Edit, Reads
from continual.deltas.method import MethodSettings
from continual.deltas.protocols import AffineMap, IdentityAtInit, Values

SCORE_RANGE = 0.1  # width of the interval that fresh scores are drawn from


class _Kept(torch.autograd.Function):
    """1 where a score is at least zero, 0 elsewhere; the gradient passes straight through (Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        return (scores >= 0).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


@dataclass(frozen=True)
class BinaryMask:
    """x (W ⊙ (M − 1))ᵀ: what dropping the weights where M [E, D] is zero adds to x Wᵀ. M = 1 where the scores are ≥ 0.

    A share `dropped` of the fresh scores is below zero. What is kept is M, eight bits to the byte.
    """

    dropped: float

    @property
    def identity(self) -> IdentityAtInit:
        return "none" if self.dropped else "exact"

    def supports(self, place: Place) -> bool:
        return place.is_linear

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        drawn = torch.rand(place.weight.shape, generator=generator)
        return {"scores": SCORE_RANGE * (drawn - self.dropped)}

    def __call__(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        return F.linear(seen, self._change(values, place))

    def _change(self, values: Values, place: Place) -> Tensor:
        weight = place.weight
        mask: Tensor = _unpacked(values["bits"], weight) if "bits" in values else _Kept.apply(values["scores"])  # type: ignore[no-untyped-call]
        return weight * (mask - 1)

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        return AffineMap(self._change(values, place), None)

    def finalize(self, values: Values, place: Place) -> dict[str, Tensor]:
        if "bits" in values:
            return dict(values)
        return {"bits": torch.from_numpy(np.packbits((values["scores"] >= 0).cpu().numpy(), axis=1))}


def _unpacked(bits: Tensor, weight: Tensor) -> Tensor:
    places = torch.arange(7, -1, -1, device=bits.device)
    each = (bits.unsqueeze(-1) >> places) & 1
    return each.flatten(1)[:, : weight.shape[1]].to(weight.dtype)


class BinaryMasking(MethodSettings):
    """y = x (M ⊙ W)ᵀ + b with M of zeros and ones learned, W as it was: which weights serve the task.

    One bit per weight of the `sites` is kept. Zhao et al. (2020), "Masking as an Efficient Alternative to Finetuning
    for Pretrained Language Models", arXiv:2004.12406.

    >>> Masking(sites=("attn.q",)).edits()[0].site
    'attn.q'
    """

    sites: tuple[str, ...] = Field(default=("projections",), min_length=1)
    dropped: float = Field(default=0.0, ge=0, lt=1, description="share of the weights that are dropped at the start")

    def edits(self) -> tuple[Edit, ...]:
        return tuple(Edit(site, BinaryMask(self.dropped), Reads.INPUT, Add()) for site in self.sites)
