"""Form of LoKr: a change of a weight that is the Kronecker product of two small matrices.

Shapes: D = D₁ D₂ inputs and E = E₁ E₂ outputs of a projection, R rank, B rows of a batch, T tokens.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from continual.backbones.sites import Place
from continual.deltas.protocols import AffineMap, IdentityAtInit, Values


@dataclass(frozen=True)
class KroneckerProduct:
    """x ΔWᵀ with ΔW = K₁ ⊗ K₂ [E, D], K₁ [E₁, D₁] and K₂ [E₂, D₂]; starts at zero, since K₁ does.

    Row by row, with x as a matrix X [D₁, D₂], the change is K₁ X K₂ᵀ [E₁, E₂]. K₂ is a product B A of rank R where
    R < max(E₂, D₂) / 2, else one matrix; so is K₁ where `decompose_both`, else it is one matrix.

    Attributes:
        rank: R.
        factor: Upper bound of D₁ and E₁, which are the divisors of D and E nearest to the square roots within it, and
            equal to it where it is a divisor; None for no bound.
        decompose_both: Whether K₁ may be a product of rank R too.
    """

    identity: ClassVar[IdentityAtInit] = "exact"

    rank: int
    factor: int | None
    decompose_both: bool

    def supports(self, place: Place) -> bool:
        """Accept places that read and change hidden states."""
        return place.is_hidden_state

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return K1 [E₁, D₁], zero, and K2 [E₂, D₂], drawn; for a product its B [E, R] and A [R, D], by name.

        Of K₁'s product B is zero.
        """
        (e1, e2), (d1, d2) = (divisors(size, self.factor) for size in (place.d_out, d_read))
        low_rank = self.decompose_both and self.rank < max(e1, d1) / 2
        k1 = (
            {"K1_B": torch.zeros(e1, self.rank), "K1_A": _draw(self.rank, d1, generator)}
            if low_rank
            else {"K1": torch.zeros(e1, d1)}
        )
        if self.rank < max(e2, d2) / 2:
            return {**k1, "K2_B": _draw(e2, self.rank, generator), "K2_A": _draw(self.rank, d2, generator)}
        return {**k1, "K2": _draw(e2, d2, generator)}

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [..., E] of `inputs` [..., D]."""
        k1, k2 = factor_of(values, "K1"), factor_of(values, "K2")
        matrices = torch.unflatten(inputs, -1, (k1.shape[-1], -1))
        return (k1 @ (matrices @ k2.mT)).flatten(-2)

    def batched_call(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [B, T, E] of `inputs` [B, T, D] by values [B, …]."""
        k1, k2 = factor_of(values, "K1"), factor_of(values, "K2")
        matrices = torch.unflatten(inputs, -1, (k1.shape[-1], -1))
        rows = torch.bmm(matrices.flatten(1, 2), k2.mT)  # [B, T · D₁, E₂]
        return (k1.unsqueeze(1) @ torch.unflatten(rows, 1, (-1, k1.shape[-1]))).flatten(-2)

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        """Return the weight K₁ ⊗ K₂ [E, D]."""
        return AffineMap(torch.kron(factor_of(values, "K1").contiguous(), factor_of(values, "K2").contiguous()), None)


def divisors(size: int, limit: int | None) -> tuple[int, int]:
    """Return m and n with m · n = size and m ≤ n, m as near √size as the limit of m allows; or m = limit, a divisor.

    >>> divisors(768, None), divisors(768, 8), divisors(127, None)
    ((24, 32), (8, 96), (1, 127))
    """
    if limit and size % limit == 0:
        return limit, size // limit
    m = max(m for m in range(1, min(limit or size, math.isqrt(size)) + 1) if size % m == 0)
    return m, size // m


def _draw(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Draw a matrix [rows, columns] as a linear layer's weight is."""
    bound = 1 / math.sqrt(columns)
    return torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)


def factor_of(values: Values, name: str) -> Tensor:
    """Return a factor [..., E_i, D_i] of the Kronecker product."""
    return values[name] if name in values else values[f"{name}_B"] @ values[f"{name}_A"]
