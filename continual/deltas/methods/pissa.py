"""PiSSA: a low-rank change that starts at the principal components of the weight that it changes.

Shapes: W [E, D] the weight of a projection, R rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.sites import Place
from continual.deltas.forms import LowRank
from continual.deltas.methods.truncated_svd import truncated_svd
from continual.deltas.protocols import AffineMap, IdentityAtInit, Values


@dataclass(frozen=True)
class PrincipalLowRank:
    """x (B A − B₀ A₀)ᵀ with A [R, D] and B [E, R] that start at A₀ and B₀, the principal components of W.

    With W = U S Vᵀ and the scale s of the edit: B₀ = U_R √(S_R / s), A₀ = √(S_R / s) V_Rᵀ. The paper trains A and B on
    the residual W − s B₀ A₀; the backbone being shared, it is the change that has the residual here. It is computed
    from what training moved, B (A − A₀) + (B − B₀) A₀, which is zero at the start and never a difference of large
    numbers. A₀ and B₀ are frozen copies; the final values are a low-rank change of rank 2R, without them.

    Meng et al. (2024), "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models",
    arXiv:2404.02948.

    Attributes:
        rank: R.
        scale: s, by which the edit multiplies the change.
    """

    identity: ClassVar[IdentityAtInit] = "exact"

    rank: int
    scale: float

    def supports(self, place: Place) -> bool:
        """Accept linear layers whose weight can be read."""
        return place.is_linear

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return A and A0 [R, D] and B and B0 [E, R], from the singular value decomposition of W."""
        a, b = principal_factors(place, rank=self.rank, scale=self.scale)
        return {"A": a, "B": b, "A0": a.clone(), "B0": b.clone()}

    def value_shapes(self, place: Place, d_read: int) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of `init_values`, without the decomposition."""
        a, b = (self.rank, d_read), (place.d_out, self.rank)
        return {"A": a, "B": b, "A0": a, "B0": b}

    def is_frozen(self, name: str) -> bool:
        """Freeze A0 and B0."""
        return name in ("A0", "B0")

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [..., E] of `inputs` [..., D]."""
        if "A0" not in values:
            return F.linear(F.linear(inputs, values["A"]), values["B"])
        first = F.linear(F.linear(inputs, values["A"] - values["A0"]), values["B"])
        return first + F.linear(F.linear(inputs, values["A0"]), values["B"] - values["B0"])

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        """Return the weight B A − B₀ A₀ [E, D]."""
        if "A0" not in values:
            return AffineMap(values["B"] @ values["A"], None)
        moved_a, moved_b = values["A"] - values["A0"], values["B"] - values["B0"]
        return AffineMap(values["B"] @ moved_a + moved_b @ values["A0"], None)

    def finalize(self, values: Values, place: Place) -> dict[str, Tensor]:
        """Return A [2R, D] and B [E, 2R] of the same change.

        PEFT stacks [A; A₀] and [B, −B₀]. These are balanced by a singular value decomposition of that product instead,
        so that they are as small as the change, and rounding them for storage is relative to it.
        """
        if "A0" not in values:
            return dict(values)
        terms = (
            {"A": values["A"] - values["A0"], "B": values["B"]},
            {"A": values["A0"], "B": values["B"] - values["B0"]},
        )
        return LowRank(2 * self.rank).weighted_average(terms, (1.0, 1.0))

    def canonical_form(self, values: Values, place: Place, *, scale: float) -> tuple[LowRank, dict[str, Tensor]] | None:
        """Return the canonical form of final values, A [2R, D] and B [E, 2R]; None for values in training."""
        if "A0" in values:
            return None
        return LowRank(len(values["A"])).canonical_form(values, place, scale=scale)


def principal_factors(place: Place, *, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return A [R, D] and B [E, R] whose product, times the scale, is the best approximation of a weight of rank R.

    s B A = U_R S_R V_Rᵀ (Eckart and Young 1936), with the singular values shared equally between A and B.

    Args:
        place: Its weight is W [E, D].
        rank: R; where it exceeds the number of singular values, the rest is zero.
        scale: s, positive.

    Returns:
        A and B in float32, on the CPU.
    """
    left_vectors, singular_values, right_vectors = truncated_svd(place, rank, torch.device("cpu"))
    root = (singular_values / scale).sqrt()
    a, b = root.unsqueeze(1) * right_vectors, left_vectors * root
    missing = rank - len(root)
    return F.pad(a, (0, 0, 0, missing)), F.pad(b, (0, missing))
