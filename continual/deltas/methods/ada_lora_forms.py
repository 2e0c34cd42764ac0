"""Form of AdaLoRA: a low-rank change in the form of a singular value decomposition.

Shapes: D inputs and E outputs of a projection, R rank.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.sites import Place
from continual.deltas.forms import LowRank
from continual.deltas.protocols import AffineMap, IdentityAtInit, Values


@dataclass(frozen=True)
class SingularTriplets:
    """x (P diag(λ) Q)ᵀ with trained P [E, R], λ [R] and Q [R, D], P and Q kept near orthogonal by a penalty.

    The penalty is γ (‖Pᵀ P − I‖² + ‖Q Qᵀ − I‖²), in the Frobenius norm. λ starts at zero, so the change does.

    Attributes:
        rank: R.
        weight: γ, in nats.
    """

    identity: ClassVar[IdentityAtInit] = "exact"

    rank: int
    weight: float

    def supports(self, place: Place) -> bool:
        """Accept places that read and change hidden states."""
        return place.is_hidden_state

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return P [E, R] and Q [R, D], drawn from normals so that vectors have length one on average, and λ [R], zero.

        Their names are `left`, `right` and `sizes`.
        """
        left = torch.randn(place.d_out, self.rank, generator=generator) / math.sqrt(place.d_out)
        right = torch.randn(self.rank, d_read, generator=generator) / math.sqrt(d_read)
        return {"left": left, "sizes": torch.zeros(self.rank), "right": right}

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [..., E] of `inputs` [..., D]."""
        return F.linear(values["sizes"] * F.linear(inputs, values["right"]), values["left"])

    def penalty(self, values: Values) -> Tensor:
        """Compute γ (‖Pᵀ P − I‖² + ‖Q Qᵀ − I‖²), a scalar in nats."""
        left, right = values["left"], values["right"]
        identity = torch.eye(left.shape[1], device=left.device)
        return self.weight * sum(
            ((product - identity).square().sum() for product in (left.T @ left, right @ right.T)), left.new_zeros(())
        )

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        """Return the weight P diag(λ) Q [E, D]."""
        low_rank = _as_low_rank(values)
        return AffineMap(low_rank["B"] @ low_rank["A"], None)

    def canonical_form(self, values: Values, place: Place, *, scale: float) -> tuple[LowRank, dict[str, Tensor]]:
        """Return A = diag(λ) Q [R, D] and B = P [E, R] in the canonical form of a low-rank change."""
        return LowRank(self.rank).canonical_form(_as_low_rank(values), place, scale=scale)

    def weighted_average(self, values: Sequence[Values], weights: Sequence[float]) -> dict[str, Tensor]:
        """Return the singular value decomposition, cut to rank R, of Σ_k w_k P_k diag(λ_k) Q_k.

        Args:
            values: P [E, R_k], λ [R_k] and Q [R_k, D] of each set; ranks may differ.
            weights: One per set.

        Returns:
            P [E, R], λ [R] and Q [R, D]; zero behind Σ R_k where that is below R.
        """
        average = LowRank(self.rank).weighted_average([_as_low_rank(part) for part in values], weights)
        sizes = average["B"].norm(dim=0) * average["A"].norm(dim=1)
        left, right = F.normalize(average["B"], dim=0), F.normalize(average["A"], dim=1)
        return {"left": left, "sizes": sizes, "right": right}


def _as_low_rank(values: Values) -> dict[str, Tensor]:
    """Return A [R, D] and B [E, R] of P diag(λ) Q."""
    return {"A": values["sizes"].unsqueeze(1) * values["right"], "B": values["left"]}
