"""BOFT: an orthogonal rotation of a projection's input, as a product of sparse butterfly factors.

Shapes: W [E, D] the weight of a projection, M factors, N blocks of size K with N K = D, B rows of a batch, T tokens.
"""

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
from continual.deltas.methods.oft import cayley_difference, multiply_blocks
from continual.deltas.protocols import AffineMap, IdentityAtInit, Values


@dataclass(frozen=True)
class ButterflyRotation:
    """(g − 1) ⊙ x Wᵀ + g ⊙ x (R − I) Wᵀ: the difference that W' = g ⊙ (W Rᵀ) makes to x Wᵀ.

    R = R_M ⋯ R₁ with R_m = P_m diag(N orthogonal blocks) P_mᵀ. P_m is the permutation of the butterfly that brings
    entries 2^(m − 1) half blocks apart into one block (P₁ = I), so that an output of R depends on 2^(M − 1) K inputs.
    The blocks are Cayley transforms, as in `OrthogonalRotation`, and start at I; the gain g [E] starts at one.

    Attributes:
        block_size: K; where K 2^(M − 1) does not divide D, the nearest size with which it does. Even where M > 1.
        factors: M.
    """

    identity: ClassVar[IdentityAtInit] = "exact"

    block_size: int
    factors: int

    def supports(self, place: Place) -> bool:
        """Accept linear layers whose weight can be read, and whose inputs have M factors."""
        return place.is_linear and bool(self._block_sizes(place.d_in))

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the entries above the diagonals, skew [M, N, K (K − 1) / 2], zero, and gain [E], one."""
        size = min(self._block_sizes(d_read), key=lambda n: (abs(n - self.block_size), n))
        skew = torch.zeros(self.factors, d_read // size, size * (size - 1) // 2)
        return {"skew": skew, "gain": torch.ones(place.d_out)}

    def _block_sizes(self, d_read: int) -> list[int]:
        multiple = 2 if self.factors > 1 else 1
        return [n for n in range(2, d_read + 1, multiple) if d_read % (n << self.factors - 1) == 0]

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [..., E] of `inputs` [..., D]."""
        return self._change(values["skew"], values["gain"], inputs, place)

    def batched_call(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [B, T, E] of `inputs` [B, T, D] by values [B, …]."""
        return self._change(values["skew"].unsqueeze(1), values["gain"].unsqueeze(1), inputs, place)

    def _change(self, skew: Tensor, gain: Tensor, inputs: Tensor, place: Place) -> Tensor:
        rotated = F.linear(self._rotation_difference(skew, inputs), place.weight)
        return (gain - 1) * F.linear(inputs, place.weight) + gain * rotated

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        """Return the weight W' − W [E, D]."""
        gain, unit = values["gain"][:, None], torch.eye(place.d_in, device=place.weight.device)
        rotation = self._rotation_difference(values["skew"], unit)
        return AffineMap((gain - 1) * place.weight + gain * F.linear(place.weight, rotation), None)

    def _rotation_difference(self, skew: Tensor, inputs: Tensor) -> Tensor:
        """Compute x (R − I) [..., D] of x [..., D] by skew [..., M, N, K (K − 1) / 2]."""
        size = inputs.shape[-1] // skew.shape[-2]
        blocks = cayley_difference(skew, size)
        difference = torch.zeros_like(inputs)
        for number in reversed(range(self.factors)):
            parts, width = (2, size // 2) if number else (1, size)  # of a block
            mixed = _transpose_pieces(inputs + difference, parts, 1 << number, width)
            mixed = multiply_blocks(mixed, blocks[..., number, :, :, :])
            difference = difference + _transpose_pieces(mixed, 1 << number, parts, width)
        return difference


def _transpose_pieces(states: Tensor, first: int, second: int, width: int) -> Tensor:
    """Reorder states [..., G · first · second · width] as if they were [..., G · second · first · width]."""
    return torch.unflatten(states, -1, (-1, first, second, width)).transpose(-3, -2).flatten(-4)


class BOFT(MethodSettings):
    """BOFT: W' = g ⊙ (W Rᵀ) at every projection, with an orthogonal R of sparse butterfly factors, and gains g.

    More factors let every input act on more outputs of R than one block of OFT's; with one factor and gains of one it
    is OFT. Parameters: factors · d_in · (block_size − 1) / 2 + d_out per projection. Liu et al. (2024),
    "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization", arXiv:2311.06243; the gains are those of
    the authors' code and of PEFT.

    Attributes:
        block_size: Size of a block.
        factors: Number of butterfly factors.
        sites: Sites or groups of linear layers.

    >>> BOFT(block_size=4, factors=3).edits()[0].site
    'projections'
    """

    block_size: int = Field(default=8, ge=2, le=4096)
    factors: int = Field(default=2, ge=1, le=16)
    sites: tuple[str, ...] = Field(default=("projections",), min_length=1)

    def edits(self) -> tuple[Edit, ...]:
        """Return one butterfly rotation per site."""
        form = ButterflyRotation(self.block_size, self.factors)
        return tuple(Edit(site, form, Reads.INPUT, Add()) for site in self.sites)
