"""DoRA: a low-rank change of a weight's direction, and a free change of its magnitude.

Shapes: W [E, D] the weight of a projection, R rank, B rows of a batch, T tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.sites import Place
from continual.deltas.compose import Add
from continual.deltas.edit import Edit, Reads
from continual.deltas.forms import LowRank, Scaling, init_low_rank, scale_divisor
from continual.deltas.method import MethodSettings, Preset, Rank, Scale, Sites
from continual.deltas.methods.low_rank_peft import low_rank_from_peft, low_rank_shapes, low_rank_to_peft
from continual.deltas.peft_format import MODULE_PREFIX, ModuleLayout, PeftAdapter, by_module
from continual.deltas.protocols import AffineMap, IdentityAtInit, Values


@dataclass(frozen=True)
class WeightDecomposed:
    """(g − 1) ⊙ x Wᵀ + g ⊙ s x Aᵀ Bᵀ with g = m / ‖W + s B A‖.

    It is the difference that W' = g ⊙ (W + s B A) makes to x Wᵀ. m [E] starts at ‖W‖, the norms of W's rows,
    so g starts at one. No gradient flows through the norm (section 4.3).

    Attributes:
        rank: R.
        scale: s.
    """

    identity: ClassVar[IdentityAtInit] = "exact"

    rank: int
    scale: float

    def supports(self, place: Place) -> bool:
        """Accept linear layers whose weight can be read."""
        return place.is_linear

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return A [R, D], drawn, B [E, R], zero, and magnitude [E], the norms of W's rows."""
        magnitude = torch.linalg.vector_norm(place.weight, dim=1).cpu()
        return {**init_low_rank(self.rank, d_read, place.d_out, generator), "magnitude": magnitude}

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [..., E] of `inputs` [..., D]."""
        low_rank, gain = self.scale * F.linear(F.linear(inputs, values["A"]), values["B"]), self._gain(values, place)
        return (gain - 1) * F.linear(inputs, place.weight) + gain * low_rank

    def _gain(self, values: Values, place: Place) -> Tensor:
        if "gain" in values:
            return values["gain"]
        with torch.no_grad():
            norm = torch.linalg.vector_norm(place.weight + self.scale * values["B"] @ values["A"], dim=-1)
        gain: Tensor = values["magnitude"] / norm
        return gain

    def canonical_form(
        self, values: Values, place: Place, *, scale: float
    ) -> tuple["WeightDecomposed", dict[str, Tensor]] | None:
        """Return A and s · B of rank `round_up_size`, and g [E] precomputed; None unless `scale` is one."""
        if scale != 1:
            return None
        low_rank, low_rank_values = LowRank(self.rank).canonical_form(values, place, scale=self.scale)
        return WeightDecomposed(low_rank.rank, 1.0), {**low_rank_values, "gain": self._gain(values, place)}

    def batched_call(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [B, T, E] of `inputs` [B, T, D] by values [B, …]."""
        gain, low_rank = self._gain(values, place).unsqueeze(1), LowRank(self.rank).batched_call(values, inputs, place)
        return (gain - 1) * F.linear(inputs, place.weight) + gain * (self.scale * low_rank)

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        """Return the weight W' − W [E, D]."""
        gain, low_rank = self._gain(values, place)[:, None], self.scale * values["B"] @ values["A"]
        return AffineMap((gain - 1) * place.weight + gain * low_rank, None)


class DoRA(MethodSettings):
    """DoRA: W' = m ⊙ (W + s B A) / ‖W + s B A‖, row by row, at the projections; s = alpha / rank by default.

    Parameters: rank · (d_in + d_out) + d_out per projection. Liu et al. (2024), "DoRA: Weight-Decomposed Low-Rank
    Adaptation", arXiv:2402.09353.

    Attributes:
        rank: Rank of A and B.
        alpha: Numerator of the scale s.
        sites: Sites or groups of linear layers.
        scaling: `standard`, s = alpha / R, or `rank_stabilized`, s = alpha / √R (Kalajdzievski 2023, arXiv:2312.03732).

    >>> DoRA(rank=4).edits()[0].site
    'projections'
    """

    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": {"rank": 32, "alpha": 64.0, "sites": ("attn.q", "attn.k", "attn.v", "ffn.in", "ffn.out")}
    }

    rank: Rank = 8
    alpha: Scale = 8.0
    sites: Sites = ("projections",)
    scaling: Scaling = "standard"

    def edits(self) -> tuple[Edit, ...]:
        """Return one weight-decomposed edit per site."""
        form = WeightDecomposed(self.rank, self.alpha / scale_divisor(self.rank, self.scaling))
        return tuple(Edit(site, form, Reads.INPUT, Add()) for site in self.sites)

    def to_peft(self, layout: ModuleLayout, values: Values) -> PeftAdapter:
        """Convert to PEFT's LoRA tensors and a `lora_magnitude_vector` [outputs] per module."""
        parts = layout.parts(self)
        plain = low_rank_to_peft(parts, values, rank=self.rank, alpha=self.alpha, scaling=self.scaling)
        magnitudes = {}
        for module, module_parts in by_module(parts).items():
            magnitude = torch.linalg.vector_norm(module_parts[0].place.module_weight, dim=1).cpu()
            for part in module_parts:
                magnitude[part.rows] = values[f"{part.key}/magnitude"]
            magnitudes[_magnitude_name(module)] = magnitude
        return PeftAdapter({**plain.config, "use_dora": True}, {**plain.tensors, **magnitudes})

    @classmethod
    def from_peft(cls, adapter: PeftAdapter, layout: ModuleLayout) -> tuple[Self, dict[str, Tensor]] | None:
        """Convert a LoRA adapter with `use_dora`; None for any other.

        Returns:
            Settings, and A [R, D], B [E, R] and magnitude [E] of each part, by key; at modules without tensors A and B
            are zero and the magnitude is ‖W‖, which changes nothing.

        Raises:
            ExchangeError: Other tensors or settings.
        """
        if adapter.config.get("peft_type") != "LORA" or not adapter.config.get("use_dora"):
            return None
        projections = layout.parts(cls())
        shapes, sites = low_rank_shapes(adapter, projections), layout.sites(adapter.module_names())
        magnitudes = {}
        for part in projections:
            if f"{MODULE_PREFIX}{part.module}.lora_B.weight" in shapes:
                magnitudes[_magnitude_name(part.module)] = (part.outputs,)
        adapter.require_tensors(shapes | magnitudes)
        parts = layout.parts(cls(sites=sites))
        settings, values = low_rank_from_peft(adapter, parts)
        for part in parts:
            whole = adapter.tensors.get(_magnitude_name(part.module))
            norms = torch.linalg.vector_norm(part.place.weight, dim=1).cpu() if whole is None else whole[part.rows]
            values[f"{part.key}/magnitude"] = norms.float()
        return cls.model_validate({**settings, "sites": sites}), values


def _magnitude_name(module: str) -> str:
    return f"{MODULE_PREFIX}{module}.lora_magnitude_vector"
