"""OFT: an orthogonal, block-diagonal rotation of a projection's input.

Shapes: D inputs and E outputs of a projection, N blocks of size K with N K = D, B rows of a batch, T tokens.
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
from continual.deltas.protocols import AffineMap, IdentityAtInit, Values


@dataclass(frozen=True)
class OrthogonalRotation:
    """x (R − I) Wᵀ: the difference that W' = W Rᵀ makes to x Wᵀ, R = diag(R₁ … R_N) orthogonal.

    Each block is a Cayley transform R_n = (I − Q_n) (I + Q_n)⁻¹ of a skew-symmetric Q_n [K, K], whose entries above the
    diagonal are the values. They start at zero, so each R_n starts at I.

    Attributes:
        block_size: K; where it does not divide D, the nearest size that does.
    """

    identity: ClassVar[IdentityAtInit] = "exact"

    block_size: int

    def supports(self, place: Place) -> bool:
        """Accept linear layers whose weight can be read."""
        return place.is_linear

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the entries above the diagonals of all Q_n, skew [N, K (K − 1) / 2], zero."""
        size = nearest_divisor(d_read, self.block_size)
        return {"skew": torch.zeros(d_read // size, size * (size - 1) // 2)}

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [..., E] of `inputs` [..., D]."""
        return F.linear(multiply_blocks(inputs, self._rotation_difference(values, place)), place.weight)

    def batched_call(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [B, T, E] of `inputs` [B, T, D] by skew [B, N, K (K − 1) / 2]."""
        blocks = self._rotation_difference(values, place).unsqueeze(1)  # the same for every token
        return F.linear(multiply_blocks(inputs, blocks), place.weight)

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        """Return the weight W (R − I)ᵀ [E, D]."""
        return AffineMap(multiply_blocks(place.weight, self._rotation_difference(values, place).mT), None)

    def _rotation_difference(self, values: Values, place: Place) -> Tensor:
        return cayley_difference(values["skew"], place.d_in // values["skew"].shape[-2])


def cayley_difference(skew: Tensor, size: int) -> Tensor:
    """Compute R − I = −2 Q (I + Q)⁻¹ [..., K, K], which is exactly zero for Q = 0.

    Args:
        skew: The entries of Q above the diagonal, row by row, [..., K (K − 1) / 2]; those below are their negatives.
        size: K.
    """
    rows, columns = torch.triu_indices(size, size, 1, device=skew.device)
    upper = skew.new_zeros(*skew.shape[:-1], size, size)
    upper[..., rows, columns] = skew
    q = upper - upper.mT
    difference: Tensor = torch.linalg.solve(torch.eye(size, device=skew.device) + q, -2 * q, left=False)
    return difference


def multiply_blocks(inputs: Tensor, blocks: Tensor) -> Tensor:
    """Compute x diag(M₁ … M_N) [..., D] for x [..., D] and M [..., N, K, K], whose leading dimensions broadcast."""
    parts = torch.unflatten(inputs, -1, blocks.shape[-3:-1])
    return torch.einsum("...nk,...nkl->...nl", parts, blocks).flatten(-2)


def nearest_divisor(size: int, wanted: int) -> int:
    """Return the divisor of `size` above one that is nearest to the wanted one, of two equally near the smaller.

    >>> nearest_divisor(768, 32), nearest_divisor(48, 32), nearest_divisor(7, 32)
    (32, 24, 7)
    """
    return min((n for n in range(2, size + 1) if size % n == 0), key=lambda n: (abs(n - wanted), n))


class OFT(MethodSettings):
    """OFT: W' = W Rᵀ at every projection, with an orthogonal R of diagonal blocks that rotates the inputs.

    The lengths of the rows of W and the angles between them are unchanged. Parameters: d_in · (block_size − 1) / 2 per
    projection. Qiu et al. (2023), "Controlling Text-to-Image Diffusion by Orthogonal
    Finetuning", arXiv:2306.07280, by its exact Cayley transform (PEFT's `use_cayley_neumann=False`).

    Attributes:
        block_size: Size of a block.
        sites: Sites or groups of linear layers.

    >>> OFT(block_size=16).edits()[0].site
    'projections'
    """

    block_size: int = Field(default=32, ge=2, le=4096)
    sites: tuple[str, ...] = Field(default=("projections",), min_length=1)

    def edits(self) -> tuple[Edit, ...]:
        """Return one rotation per site."""
        return tuple(Edit(site, OrthogonalRotation(self.block_size), Reads.INPUT, Add()) for site in self.sites)
