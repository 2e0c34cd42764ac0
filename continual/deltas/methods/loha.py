"""LoHa: the Hadamard product of two low-rank changes.

Shapes: D inputs and E outputs of a projection, R rank.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.deltas.compose import Add
from continual.deltas.edit import Edit, Reads
from continual.deltas.method import MethodSettings, Rank, Scale, Sites
from continual.deltas.methods.loha_forms import HadamardProduct
from continual.deltas.methods.module_peft import (
    Shapes,
    block_columns,
    modules_to_peft,
    part_counts,
    read_modules,
    require_linear,
    values_of_modules,
)
from continual.deltas.methods.peft_configs import PatternedConfig
from continual.deltas.peft_format import ModuleLayout, PeftAdapter, PlacedModule
from continual.deltas.protocols import Values


class LoHa(MethodSettings):
    """LoHa: W + (alpha / rank) · (B₁ A₁) ⊙ (B₂ A₂) at every projection.

    Parameters: 2 · rank · (d_in + d_out) per projection, for a change of rank up to rank². Hyeon-Woo et al. (2022),
    "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning", arXiv:2108.06098; as a change
    of a frozen weight, Yeh et al. (2024), "Navigating Text-To-Image Customization" (LyCORIS), arXiv:2309.14859.

    Attributes:
        rank: Rank of each factor.
        alpha: Numerator of the scale.
        sites: Sites or groups of linear layers.

    >>> LoHa(rank=4).edits()[0].site
    'projections'
    """

    rank: Rank = 8
    alpha: Scale = 8.0
    sites: Sites = ("projections",)

    def edits(self) -> tuple[Edit, ...]:
        """Return one product of low-rank changes per site."""
        form, compose = HadamardProduct(self.rank), Add(self.alpha / self.rank)
        return tuple(Edit(site, form, Reads.INPUT, compose) for site in self.sites)

    def to_peft(self, layout: ModuleLayout, values: Values) -> PeftAdapter:
        """Convert to PEFT's factors B₁ [E, R], A₁ [R, D], B₂ and A₂ per module; of rank nR where it has n parts.

        Raises:
            ExchangeError: A module is none of PEFT's linear layers.
        """
        parts = layout.parts(self)
        require_linear(parts, "LOHA")
        counts = part_counts(parts)
        return modules_to_peft(
            parts,
            values,
            _factors_of_module,
            peft_type="LOHA",
            r=self.rank,
            alpha=self.alpha,
            rank_pattern={module: n * self.rank for module, n in counts.items()},
            alpha_pattern={module: n * self.alpha for module, n in counts.items()},
        )

    @classmethod
    def from_peft(cls, adapter: PeftAdapter, layout: ModuleLayout) -> tuple[Self, dict[str, Tensor]] | None:
        """Convert a LOHA adapter; None for one of another type.

        Returns:
            Settings of the largest rank and scale, and the factors of each part, by key, with zeros behind a smaller
            rank.

        Raises:
            ExchangeError: Other tensors or settings.
        """
        if adapter.config.get("peft_type") != "LOHA":
            return None
        adapter.require_supported_config("rank_pattern", "alpha_pattern", "init_weights", "use_effective_conv2d")
        config = PatternedConfig.model_validate(adapter.config)

        def shapes(part: PlacedModule) -> Shapes:
            b, a = (part.outputs, config.rank(part.module)), (config.rank(part.module), part.place.d_in)
            return {"hada_w1_a": b, "hada_w1_b": a, "hada_w2_a": b, "hada_w2_b": a}

        modules = read_modules(adapter, layout, shapes)
        rank, scale = config.largest(modules)

        def convert(part: PlacedModule, tensors: Values) -> Values:
            missing, ratio = rank - config.rank(part.module), config.scale(part.module) / scale
            a1, a2 = (F.pad(tensors[f"hada_w{number}_b"], (0, 0, 0, missing)) for number in (1, 2))
            b1, b2 = (F.pad(tensors[f"hada_w{number}_a"][part.rows], (0, missing)) for number in (1, 2))
            return {"A1": a1, "B1": ratio * b1, "A2": a2, "B2": b2}

        settings = cls(rank=rank, alpha=scale * rank, sites=layout.sites(modules))
        return settings, values_of_modules(layout, settings, modules, convert)


def _factors_of_module(parts: Sequence[PlacedModule], values: Sequence[Values]) -> dict[str, Tensor]:
    factors = {}
    for number in (1, 2):
        factors[f"hada_w{number}_a"] = block_columns(parts, [part[f"B{number}"] for part in values])
        factors[f"hada_w{number}_b"] = torch.cat([part[f"A{number}"] for part in values])
    return factors
