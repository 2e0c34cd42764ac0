"""Form of LoHa: the Hadamard product of two low-rank changes.

Shapes: D inputs and E outputs of a projection, R rank.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.sites import Place
from continual.deltas.forms import LowRank, init_low_rank
from continual.deltas.protocols import AffineMap, IdentityAtInit, Values

MAX_PRODUCT_RANK = 256  # largest R² that is computed as two factors: above it, one matrix is cheaper at common widths


@dataclass(frozen=True)
class HadamardProduct:
    """x ΔWᵀ with ΔW = (B₁ A₁) ⊙ (B₂ A₂) [E, D], A [R, D] and B [E, R]; starts at zero, since A₂ does.

    ΔW has a rank of up to R², with the parameters of rank 2R.

    Attributes:
        rank: R.
    """

    identity: ClassVar[IdentityAtInit] = "exact"

    rank: int

    def supports(self, place: Place) -> bool:
        """Accept places that read and change hidden states."""
        return place.is_hidden_state

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return A1 [R, D], B1 and B2 [E, R], drawn as linear layers' weights are, and A2 [R, D], zero."""
        bound, shape = 1 / math.sqrt(self.rank), (place.d_out, self.rank)
        b1, b2 = (torch.empty(shape).uniform_(-bound, bound, generator=generator) for _ in range(2))
        a1 = init_low_rank(self.rank, d_read, place.d_out, generator)["A"]
        return {"A1": a1, "B1": b1, "A2": torch.zeros(self.rank, d_read), "B2": b2}

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [..., E] of `inputs` [..., D]."""
        if self.rank**2 > MAX_PRODUCT_RANK:
            return F.linear(inputs, _product(values))
        low_rank = _as_low_rank(values)
        return F.linear(F.linear(inputs, low_rank["A"]), low_rank["B"])

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        """Return the weight ΔW [E, D]."""
        return AffineMap(_product(values), None)

    def canonical_form(self, values: Values, place: Place, *, scale: float) -> tuple[LowRank, dict[str, Tensor]] | None:
        """Return A [R², D] and B [E, R²] in the canonical form of a low-rank change; None where R² is large."""
        if self.rank**2 > MAX_PRODUCT_RANK:
            return None
        return LowRank(self.rank**2).canonical_form(_as_low_rank(values), place, scale=scale)


def _product(values: Values) -> Tensor:
    """Compute (B₁ A₁) ⊙ (B₂ A₂) [E, D]."""
    return (values["B1"] @ values["A1"]) * (values["B2"] @ values["A2"])


def _as_low_rank(values: Values) -> dict[str, Tensor]:
    """Return A [R², D], whose row i R + j is A₁[i] ⊙ A₂[j], and B [E, R²], likewise of columns: B A is ΔW."""
    a = (values["A1"].unsqueeze(1) * values["A2"]).flatten(0, 1)
    b = (values["B1"].unsqueeze(2) * values["B2"].unsqueeze(1)).flatten(1)
    return {"A": a, "B": b}
