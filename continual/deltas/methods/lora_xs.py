"""LoRA-XS: a small trained matrix between the first singular vectors of the weight.

Shapes: W [E, D] the weight of a projection, R rank, B rows of a batch, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.sites import Place
from continual.deltas.compose import Add
from continual.deltas.edit import Edit, Reads
from continual.deltas.method import MethodSettings, Rank, Scale, Sites
from continual.deltas.methods.truncated_svd import truncated_svd
from continual.deltas.protocols import AffineMap, IdentityAtInit, Values


@dataclass(frozen=True)
class SingularCore:
    """x Aᵀ Cᵀ Bᵀ with trained C [R, R], and fixed A = Σ_R V_Rᵀ [R, D] and B = U_R [E, R] of W ≈ U_R Σ_R V_Rᵀ.

    A and B follow from W and are not stored. R is at most the smaller dimension of W.

    Attributes:
        rank: R.
        initial_scale: Deviation of the normal from which C is drawn.
    """

    rank: int
    initial_scale: float

    @property
    def identity(self) -> IdentityAtInit:
        """Exact where C starts at zero, else near."""
        return "near" if self.initial_scale else "exact"

    def supports(self, place: Place) -> bool:
        """Accept linear layers whose weight can be read."""
        return place.is_linear

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return C [R, R], drawn."""
        rank = min(self.rank, d_read, place.d_out)
        return {"core": self.initial_scale * torch.randn(rank, rank, generator=generator)}

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [..., E] of `inputs` [..., D]."""
        a, b = self._factors(place, inputs.device)
        return F.linear(F.linear(F.linear(inputs, a), values["core"]), b)

    def batched_call(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [B, T, E] of `inputs` [B, T, D] by C [B, R, R]."""
        a, b = self._factors(place, inputs.device)
        return F.linear(torch.bmm(F.linear(inputs, a), values["core"].mT), b)

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        """Return the weight B C A [E, D]."""
        a, b = self._factors(place, values["core"].device)
        return AffineMap(b @ values["core"] @ a, None)

    def weighted_average(self, values: Sequence[Values], weights: Sequence[float]) -> dict[str, Tensor]:
        """Return C [R, R] of Σ_k w_k C_k; a C_k of another rank has the same singular vectors, more or fewer of them.

        Args:
            values: C [R_k, R_k] of each set; ranks may differ.
            weights: One per set.

        Returns:
            C [R, R]; smaller where all C_k are.
        """
        cores = [weight * part["core"].float() for part, weight in zip(values, weights, strict=True)]
        rank = min(self.rank, max(len(core) for core in cores))
        missing = (rank - len(core) for core in cores)  # negative where rows and columns are cut off
        return {"core": torch.stack([F.pad(core, (0, n, 0, n)) for core, n in zip(cores, missing, strict=True)]).sum(0)}

    def _factors(self, place: Place, device: torch.device) -> tuple[Tensor, Tensor]:
        left_vectors, sizes, right_vectors = truncated_svd(place, self.rank, device)
        return sizes[:, None] * right_vectors, left_vectors


class LoRAXS(MethodSettings):
    """LoRA-XS: W + (alpha / rank) · U C Σ Vᵀ at every projection, with a trained matrix C [rank, rank] only.

    U Σ Vᵀ is the truncated singular value decomposition of the frozen W itself. Parameters: rank² per projection.
    Bałazy et al. (2024), "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters", arXiv:2405.17604.

    Attributes:
        rank: Number of singular vectors on each side.
        alpha: Numerator of the scale.
        initial_scale: Deviation of the normal from which C is drawn; 0 for no change.
        sites: Sites or groups of linear layers.

    >>> LoRAXS(rank=4).edits()[0].site
    'projections'
    """

    rank: Rank = 16
    alpha: Scale = 16.0
    initial_scale: float = Field(default=1e-5, ge=0, allow_inf_nan=False, description="deviation of a fresh C")
    sites: Sites = ("projections",)

    def edits(self) -> tuple[Edit, ...]:
        """Return one core between singular vectors per site."""
        form, compose = SingularCore(self.rank, self.initial_scale), Add(self.alpha / self.rank)
        return tuple(Edit(site, form, Reads.INPUT, compose) for site in self.sites)
