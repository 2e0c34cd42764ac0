"""LoKr: a change of a weight that is the Kronecker product of two small matrices.

Shapes: D = D₁ D₂ inputs and E = E₁ E₂ outputs of a projection, R rank, B rows of a batch, T tokens.
"""

from typing import Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from continual.deltas.compose import Add
from continual.deltas.edit import Edit, Reads
from continual.deltas.method import MethodSettings, Rank, Scale, Sites
from continual.deltas.methods.lokr_forms import KroneckerProduct, factor_of
from continual.deltas.methods.module_peft import (
    Shapes,
    modules_to_peft,
    read_modules,
    require_linear,
    require_single_parts,
    values_of_modules,
)
from continual.deltas.methods.peft_configs import LoKrConfig
from continual.deltas.peft_format import ModuleLayout, PeftAdapter, PlacedModule
from continual.deltas.protocols import Values

PEFT_NAMES = {"K1": "w1", "K1_B": "w1_a", "K1_A": "w1_b", "K2": "w2", "K2_B": "w2_a", "K2_A": "w2_b"}


class LoKr(MethodSettings):
    """LoKr: W + (alpha / rank) · K₁ ⊗ (B A) at every projection, a Kronecker product.

    K₁ is [E₁, D₁] and B A [E₂, D₂] of the given rank, with E₁ E₂ = d_out and D₁ D₂ = d_in, all near the square roots.
    Parameters: E₁ D₁ + rank · (E₂ + D₂) per projection; a B A of that rank or less is one matrix, E₂ D₂.
    Edalati et al. (2022), "KronA", arXiv:2212.10650; Yeh et al. (2024), "Navigating Text-To-Image Customization"
    (LyCORIS), arXiv:2309.14859.

    Attributes:
        rank: Rank of the second factor.
        alpha: Numerator of the scale.
        factor: The largest E₁ and D₁; None for the square roots.
        decompose_both: Whether K₁ is of this rank too, where it is larger.
        sites: Sites or groups of linear layers.

    >>> LoKr(rank=4).edits()[0].site
    'projections'
    """

    rank: Rank = 8
    alpha: Scale = 8.0
    factor: int | None = Field(default=None, ge=1, description="largest dimensions of the first factor")
    decompose_both: bool = False
    sites: Sites = ("projections",)

    def edits(self) -> tuple[Edit, ...]:
        """Return one Kronecker product per site."""
        form, compose = KroneckerProduct(self.rank, self.factor, self.decompose_both), Add(self.alpha / self.rank)
        return tuple(Edit(site, form, Reads.INPUT, compose) for site in self.sites)

    def to_peft(self, layout: ModuleLayout, values: Values) -> PeftAdapter:
        """Convert to PEFT's factors, the same matrices as the values.

        Raises:
            ExchangeError: A module computes several projections, or is none of PEFT's linear layers.
        """
        parts = layout.parts(self)
        require_linear(parts, "LOKR")
        require_single_parts(parts, "LOKR")
        return modules_to_peft(
            parts,
            values,
            lambda _, values: {f"lokr_{PEFT_NAMES[name]}": value for name, value in values[0].items()},
            peft_type="LOKR",
            r=self.rank,
            alpha=self.alpha,
            decompose_factor=self.factor or -1,
            decompose_both=self.decompose_both,
        )

    @classmethod
    def from_peft(cls, adapter: PeftAdapter, layout: ModuleLayout) -> tuple[Self, dict[str, Tensor]] | None:
        """Convert a LOKR adapter; None for one of another type.

        Returns:
            Settings of the largest rank and scale, and the factors of each projection, by key: products of a smaller
            rank with zeros behind it, or computed where the largest rank makes them one matrix.

        Raises:
            ExchangeError: Other tensors or settings, or a module computes several projections.
        """
        if adapter.config.get("peft_type") != "LOKR":
            return None
        adapter.require_supported_config(
            "rank_pattern",
            "alpha_pattern",
            "decompose_both",
            "init_weights",
            "rank_dropout_scale",
            "use_effective_conv2d",
        )
        config = LoKrConfig.model_validate(adapter.config)

        def shapes(part: PlacedModule) -> Shapes:
            require_single_parts([part], "LOKR")
            form = KroneckerProduct(config.rank(part.module), config.factor, config.decompose_both)
            fresh = form.init_values(part.place, part.place.d_in, torch.Generator())
            return {f"lokr_{PEFT_NAMES[name]}": tuple(value.shape) for name, value in fresh.items()}

        modules = read_modules(adapter, layout, shapes)
        rank, scale = config.largest(modules)
        form = KroneckerProduct(rank, config.factor, config.decompose_both)

        def convert(part: PlacedModule, tensors: Values) -> Values:
            fresh = form.init_values(part.place, part.place.d_in, torch.Generator())
            factors = {name: tensors[f"lokr_{key}"] for name, key in PEFT_NAMES.items() if f"lokr_{key}" in tensors}
            values = {name: _resized(factors, name, rank) for name in fresh}
            first = "K1" if "K1" in values else "K1_B"
            return values | {first: config.scale(part.module) / scale * values[first]}

        settings = cls(
            rank=rank,
            alpha=scale * rank,
            factor=config.factor,
            decompose_both=config.decompose_both,
            sites=layout.sites(modules),
        )
        return settings, values_of_modules(layout, settings, modules, convert)


def _resized(values: Values, name: str, rank: int) -> Tensor:
    """Return a value [...] for a larger rank: a factor's product as one matrix, or with zeros behind its own rank."""
    if name in ("K1", "K2"):
        return factor_of(values, name)
    missing = rank - values[f"{name[:2]}_A"].shape[0]
    return F.pad(values[name], (0, missing) if name.endswith("B") else (0, 0, 0, missing))
