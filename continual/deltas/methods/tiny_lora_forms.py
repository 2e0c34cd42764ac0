"""Form of TinyLoRA: a few trained numbers, common to all projections, between the singular vectors of their weights.

Shapes: W [E, D] the weight of a projection, R rank, U numbers, B rows of a batch, T tokens.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.sites import Place
from continual.deltas.methods.truncated_svd import truncated_svd
from continual.deltas.protocols import AffineMap, IdentityAtInit, Values


@dataclass(frozen=True)
class RandomCores:
    """x Aᵀ Cᵀ Bᵀ with C = Σ_u v_u P_u [R, R]: v [U] trained and common to all places, P_u random and fixed at each.

    A = √Σ_R V_Rᵀ [R, D] and B = U_R √Σ_R [E, R] of W ≈ U_R Σ_R V_Rᵀ are fixed. Entries of P_u are drawn from a normal
    of variance 1 / R. Neither is stored: A and B follow from W, P from the seed. v starts at zero, so the change does.

    Attributes:
        rank: R, at most the smaller dimension of W.
        dimension: U.
        seed: Seed of P.
    """

    identity: ClassVar[IdentityAtInit] = "exact"

    rank: int
    dimension: int
    seed: int

    def supports(self, place: Place) -> bool:
        """Accept linear layers whose weight can be read."""
        return place.is_linear

    def init_shared(self, places: Sequence[Place], generator: torch.Generator) -> dict[str, Tensor]:
        """Return v [U], zero."""
        return {"v": torch.zeros(self.dimension)}

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return nothing: all values are common to the places."""
        return {}

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [..., E] of `inputs` [..., D]."""
        a, b, core = self._factors(values["v"], place, inputs.device)
        return F.linear(F.linear(F.linear(inputs, a), core), b)

    def batched_call(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [B, T, E] of `inputs` [B, T, D] by v [B, U]."""
        a, b, core = self._factors(values["v"], place, inputs.device)
        return F.linear(torch.bmm(F.linear(inputs, a), core.mT), b)

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        """Return the weight B C A [E, D]."""
        a, b, core = self._factors(values["v"], place, values["v"].device)
        return AffineMap(b @ core @ a, None)

    def _factors(self, v: Tensor, place: Place, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return A [R, D], B [E, R] and C [..., R, R] of v [..., U]."""
        a, b, cores = self.fixed_factors(place, device)
        return a, b, torch.tensordot(v, cores, dims=1)

    def fixed_factors(self, place: Place, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return A [R, D], B [E, R] and P [U, R, R]."""
        left_vectors, sizes, right_vectors = truncated_svd(place, self.rank, device)
        cores = draw_cores(self.dimension, len(sizes), f"{self.seed}/{place.name}", device)
        root = sizes.sqrt()
        return root[:, None] * right_vectors, left_vectors * root, cores


@lru_cache(maxsize=1024)
@torch.inference_mode(False)  # a cached inference tensor would be an error in training
def draw_cores(dimension: int, rank: int, seed: str, device: torch.device) -> Tensor:
    """Draw matrices P [U, R, R] of normals of variance 1 / R.

    Args:
        dimension: U.
        rank: R.
        seed: Any text.
        device: Where the tensor is put; the draw is the same on every device.
    """
    seed_number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(seed_number)
    return (torch.randn(dimension, rank, rank, generator=generator) / math.sqrt(rank)).to(device)
