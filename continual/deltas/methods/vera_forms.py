"""Forms of VeRA: trained scales between two random projections, drawn when they are needed or stored.

Shapes: D inputs and E outputs of a projection, R rank, B rows of a batch, T tokens.
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
        projection_a, projection_b = self.projections(inputs.shape[-1], b.shape[-1], inputs.device)
        return b * F.linear(d * F.linear(inputs, projection_a), projection_b)

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        """Return the weight (b ⊙ B) (d ⊙ A) [E, D]."""
        projection_a, projection_b = self.projections(place.d_in, place.d_out, values["b"].device)
        return AffineMap((values["b"][:, None] * projection_b) @ (values["d"][:, None] * projection_a), None)

    def projections(self, d_read: int, d_out: int, device: torch.device) -> tuple[Tensor, Tensor]:
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


@dataclass(frozen=True)
class StoredProjections:
    """b ⊙ (d ⊙ x Aᵀ) Bᵀ with trained d [R] and b [E], and A [R, D] and B [E, R] fixed but stored, as PEFT does.

    One pair is stored for all places, as large as the largest needs: a place takes the first columns of A, and the rows
    of B with the numbers of its outputs in its module. b starts at zero, so the change does.

    Attributes:
        rank: R.
        initial_scale: The entries of a fresh d.
        seed: Seed of A and B: PEFT's `projection_prng_key`.
    """

    identity: ClassVar[IdentityAtInit] = "exact"

    rank: int
    initial_scale: float
    seed: int

    def supports(self, place: Place) -> bool:
        """Accept places that read and change hidden states."""
        return place.is_hidden_state

    def init_shared(self, places: Sequence[Place], generator: torch.Generator) -> dict[str, Tensor]:
        """Return A [R, D] and B [E, R] of the largest D and E, as PEFT draws them."""
        widths = max(place.d_in for place in places), max(rows_of(place).stop for place in places)
        return draw_projections(self.rank, *widths, seed=self.seed)

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return d [R], constant, and b [E], zero."""
        return {"d": torch.full((self.rank,), self.initial_scale), "b": torch.zeros(place.d_out)}

    def is_frozen(self, name: str) -> bool:
        """Freeze A and B."""
        return name in ("A", "B")

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [..., E] of `inputs` [..., D]."""
        a, b = values["A"][:, : place.d_in], values["B"][rows_of(place)]
        return values["b"] * F.linear(values["d"] * F.linear(inputs, a), b)

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        """Return the weight (b ⊙ B) (d ⊙ A) [E, D]."""
        a, b = values["A"][:, : place.d_in], values["B"][rows_of(place)]
        return AffineMap((values["b"][:, None] * b) @ (values["d"][:, None] * a), None)


def rows_of(place: Place) -> slice:
    """Return the numbers of a place's outputs in its module."""
    return place.columns or slice(0, place.d_out)


def draw_projections(rank: int, d_in: int, d_out: int, *, seed: int) -> dict[str, Tensor]:
    """Draw A [R, D] and B [E, R] from a seed as PEFT does: uniform as He et al. (2015) scale them, A first.

    Args:
        rank: R.
        d_in: D.
        d_out: E.
        seed: The seed.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, shape in (("A", (rank, d_in)), ("B", (d_out, rank))):
        bound = math.sqrt(3) * (math.sqrt(2) / math.sqrt(shape[1]))  # in PEFT's order, so that the bits are the same
        drawn[name] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return drawn
