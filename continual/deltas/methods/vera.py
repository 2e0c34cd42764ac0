"""VeRA: trained scales between two random projections that all places have in common.

Shapes: D inputs and E outputs of a projection, R rank, B rows of a batch, T tokens.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
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


@dataclass(frozen=True)
class ScaledRandomProjections:
    """b ⊙ (d ⊙ x Aᵀ) Bᵀ with random, fixed A [R, D] and B [E, R], and trained d [R] and b [E].

    A and B are drawn from the seed and are not stored: `shared_projection`. b starts at zero, so the change does.

    Attributes:
        rank: R.
        initial_scale: The entries of a fresh d.
        seed: Seed of A and B.
    """

    identity: ClassVar[IdentityAtInit] = "exact"

    rank: int
    initial_scale: float
    seed: int

    def supports(self, place: Place) -> bool:
        """Accept places that read and change hidden states."""
        return place.is_hidden_state

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return d [R], constant, and b [E], zero."""
        return {"d": torch.full((self.rank,), self.initial_scale), "b": torch.zeros(place.d_out)}

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [..., E] of `inputs` [..., D]."""
        return self._change(values["d"], values["b"], inputs)

    def batched_call(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [B, T, E] of `inputs` [B, T, D] by d [B, R] and b [B, E]."""
        return self._change(values["d"].unsqueeze(1), values["b"].unsqueeze(1), inputs)

    def _change(self, d: Tensor, b: Tensor, inputs: Tensor) -> Tensor:
        projection_a, projection_b = self._projections(inputs.shape[-1], b.shape[-1], inputs.device)
        return b * F.linear(d * F.linear(inputs, projection_a), projection_b)

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        """Return the weight (b ⊙ B) (d ⊙ A) [E, D]."""
        projection_a, projection_b = self._projections(place.d_in, place.d_out, values["b"].device)
        return AffineMap((values["b"][:, None] * projection_b) @ (values["d"][:, None] * projection_a), None)

    def _projections(self, d_read: int, d_out: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return A [R, D] and B [E, R], uniform as He et al. (2015) scale them, by their inputs D and R."""
        a, b = (
            shared_projection(size, self.rank, f"{self.seed}/{name}", device)
            for name, size in (("A", d_read), ("B", d_out))
        )
        return a.T * math.sqrt(6 / d_read), b * math.sqrt(6 / self.rank)


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # a cached inference tensor would be an error in training
def shared_projection(size: int, rank: int, seed: str, device: torch.device) -> Tensor:
    """Draw a matrix [size, rank], uniform in ±1, whose rows are the first ones of every larger matrix of the seed.

    Args:
        size: Number of rows.
        rank: Number of columns.
        seed: Any text.
        device: Where the tensor is put; the draw is the same on every device.
    """
    seed_number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(seed_number)
    return torch.stack([2 * torch.rand(rank, generator=generator) - 1 for _ in range(size)]).to(device)


class VeRA(MethodSettings):
    """VeRA: y ← y + b ⊙ (d ⊙ x Aᵀ) Bᵀ at every projection, with trained vectors d and b only.

    A and B are random and fixed, and all places share them: one of fewer inputs or outputs takes the first columns of A
    or rows of B (A scaled by its own inputs, where PEFT scales by the most). Parameters: rank + d_out per projection.
    Kopiczko et al. (2024), "VeRA: Vector-based Random Matrix Adaptation", arXiv:2310.11454.

    Attributes:
        rank: Rank of A and B.
        initial_scale: The entries of a fresh d.
        seed: Seed of A and B.
        sites: Sites or groups of linear layers.

    >>> VeRA(rank=64).edits()[0].site
    'projections'
    """

    rank: int = Field(default=256, ge=1, le=65536)
    initial_scale: float = Field(default=0.1, gt=0, allow_inf_nan=False, description="entries of a fresh d")
    seed: int = Field(default=0, ge=0)
    sites: tuple[str, ...] = Field(default=("projections",), min_length=1)

    def edits(self) -> tuple[Edit, ...]:
        """Return one scaled projection per site."""
        form = ScaledRandomProjections(self.rank, self.initial_scale, self.seed)
        return tuple(Edit(site, form, Reads.INPUT, Add()) for site in self.sites)
