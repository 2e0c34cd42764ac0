"""Forms of OFT and BOFT: an orthogonal rotation of a projection's input, by blocks or by butterfly factors.

Shapes: W [E, D] the weight of a projection, N blocks of size K with N K = D, M factors, B rows of a batch, T tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.sites import Place
from continual.deltas.protocols import AffineMap, IdentityAtInit, Values


@dataclass(frozen=True)
class OrthogonalRotation:
    """x (R − I) Wᵀ: the difference that W' = W Rᵀ makes to x Wᵀ, R = diag(R₁ … R_N) orthogonal.

    Each block is a Cayley transform R_n = (I − Q_n) (I + Q_n)⁻¹ of a skew-symmetric Q_n [K, K], whose entries above the
    diagonal are the values. They start at zero, so each R_n starts at I. With `series` R_n is a truncated series
    instead, which is nearly orthogonal: `neumann_difference`.

    Attributes:
        block_size: K; where it does not divide D, the nearest size that does.
        series: The highest power of Q_n in the series; 0 for the exact transform.
    """

    identity: ClassVar[IdentityAtInit] = "exact"

    block_size: int
    series: int

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
        skew, size = values["skew"], place.d_in // values["skew"].shape[-2]
        return neumann_difference(skew, size, self.series) if self.series else cayley_difference(skew, size)


def neumann_difference(skew: Tensor, size: int, power: int) -> Tensor:
    """Compute R − I = 2 (Q + Q² + … + Q^(p − 1)) + Q^p [..., K, K], which approaches (I + Q) (I − Q)⁻¹ − I.

    Args:
        skew: The entries of Q above the diagonal, as in `cayley_difference`.
        size: K.
        power: p.
    """
    q = skew_matrix(skew, size)
    product, difference = q, torch.zeros_like(q)
    for _ in range(1, power):
        difference = difference + 2 * product
        product = product @ q
    return difference + product


def skew_matrix(skew: Tensor, size: int) -> Tensor:
    """Return the skew-symmetric Q [..., K, K] of its entries above the diagonal, row by row [..., K (K − 1) / 2]."""
    rows, columns = torch.triu_indices(size, size, 1, device=skew.device)
    upper = skew.new_zeros(*skew.shape[:-1], size, size)
    upper[..., rows, columns] = skew
    return upper - upper.mT


def above_diagonal(matrices: Tensor) -> Tensor:
    """Return the entries above the diagonal of matrices [..., K, K], row by row: [..., K (K − 1) / 2]."""
    rows, columns = torch.triu_indices(matrices.shape[-1], matrices.shape[-1], 1, device=matrices.device)
    return matrices[..., rows, columns]


def cayley_difference(skew: Tensor, size: int) -> Tensor:
    """Compute R − I = −2 Q (I + Q)⁻¹ [..., K, K], which is exactly zero for Q = 0.

    Args:
        skew: The entries of Q above the diagonal, row by row, [..., K (K − 1) / 2]; those below are their negatives.
        size: K.
    """
    q = skew_matrix(skew, size)
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
