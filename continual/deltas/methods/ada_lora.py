"""AdaLoRA's parametrisation: a low-rank change in the form of a singular value decomposition.

Shapes: D inputs and E outputs of a projection, R rank.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from continual.deltas.compose import Add
from continual.deltas.edit import Edit, Reads
from continual.deltas.method import MethodSettings, Preset, Rank, Scale, Sites
from continual.deltas.methods.ada_lora_forms import RankBudget, SingularTriplets
from continual.deltas.methods.module_peft import (
    Shapes,
    block_columns,
    is_transposed,
    modules_to_peft,
    part_counts,
    read_modules,
    values_of_modules,
)
from continual.deltas.methods.peft_configs import AdaLoRAConfig
from continual.deltas.peft_format import ModuleLayout, PeftAdapter, PlacedModule
from continual.deltas.protocols import Values

PEFT_OFFSET = 1e-5  # PEFT divides by the rank and this


class AdaLoRA(MethodSettings):
    """AdaLoRA: W + (alpha / rank) · P diag(λ) Q at every projection, with a budget of ranks for all of them.

    A penalty keeps P and Q near orthogonal, so that λ are nearly singular values of the change. With `target_rank`
    training removes triplets (λ becomes zero), the least important of all projections, until that many are left on
    average; without, every projection keeps its rank. Parameters: rank · (d_in + d_out + 1) per projection.
    Zhang et al. (2023), "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", arXiv:2303.10512.

    Attributes:
        rank: Number of triplets of a projection, at the start.
        alpha: Numerator of the scale.
        penalty: γ, in nats, of each projection.
        target_rank: Triplets of a projection that are left, on average; None for all.
        warmup: Share of the steps before any triplet is removed.
        final: Share of the steps after the last is removed.
        interval: Steps from one removal to the next; triplets that were removed may return at it.
        sites: Sites or groups of linear layers.

    >>> AdaLoRA(rank=4).edits()[0].site
    'projections'
    """

    PRESETS: ClassVar[Mapping[str, Preset]] = {"paper": {"rank": 12, "target_rank": 8.0}}

    rank: Rank = 8
    alpha: Scale = 8.0
    penalty: float = Field(default=0.1, ge=0, allow_inf_nan=False, description="γ, of each projection")
    target_rank: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="triplets left, on average")
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of the steps before the first cut")
    final: float = Field(default=0.4, ge=0, lt=1, description="share of the steps after the last cut")
    interval: int = Field(default=5, ge=1, description="steps between two cuts")
    sites: Sites = ("projections",)

    @model_validator(mode="after")
    def _check_budget(self) -> Self:
        if self.target_rank is not None and self.target_rank > self.rank:
            raise ValueError(f"target_rank {self.target_rank} is more than rank {self.rank}; give at most the rank")
        if self.warmup + self.final >= 1:
            raise ValueError(f"warmup {self.warmup} and final {self.final} leave no steps; their sum is below 1")
        return self

    def edits(self) -> tuple[Edit, ...]:
        """Return one set of singular triplets per site."""
        target = self.target_rank
        budget = None if target is None else RankBudget(target, self.warmup, self.final, self.interval)
        form, compose = SingularTriplets(self.rank, self.penalty, budget), Add(self.alpha / self.rank)
        return tuple(Edit(site, form, Reads.INPUT, compose) for site in self.sites)

    def to_peft(self, layout: ModuleLayout, values: Values) -> PeftAdapter:
        """Convert to PEFT's P [E, R₀], λ [R₀, 1] and Q [R₀, D] per module, with zeros behind the rank.

        R₀ is n times the rank, where a module computes at most n projections.
        """
        parts = layout.parts(self)
        rank = self.rank * max(part_counts(parts).values(), default=1)

        def convert(parts: Sequence[PlacedModule], values: Sequence[Values]) -> Values:
            p, sizes = block_columns(parts, [part["left"] for part in values]), [part["sizes"] for part in values]
            q, missing = torch.cat([part["right"] for part in values]), rank - p.shape[1]
            lambdas = (rank + PEFT_OFFSET) / rank * torch.cat(sizes)
            return {
                "lora_A": F.pad(q, (0, 0, 0, missing)),
                "lora_B": F.pad(p, (0, missing)),
                "lora_E": F.pad(lambdas, (0, missing)).unsqueeze(1),
            }

        return modules_to_peft(
            parts,
            values,
            convert,
            peft_type="ADALORA",
            init_r=rank,
            target_r=rank,
            lora_alpha=self.alpha * rank / self.rank,
            lora_dropout=0.0,
            orth_reg_weight=self.penalty,
            total_step=1,
            bias="none",
            fan_in_fan_out=is_transposed(parts),
        )

    @classmethod
    def from_peft(cls, adapter: PeftAdapter, layout: ModuleLayout) -> tuple[Self, dict[str, Tensor]] | None:
        """Convert an ADALORA adapter; None for one of another type.

        Returns:
            Settings, and P [E, R], λ [R] and Q [R, D] of each part, by key: the triplets that are not zero, with zeros
            behind them. R is the largest number of such triplets.

        Raises:
            ExchangeError: Other tensors or settings.
        """
        if adapter.config.get("peft_type") != "ADALORA":
            return None
        adapter.require_supported_config("rank_pattern", "init_lora_weights", "use_rslora")
        config = AdaLoRAConfig.model_validate(adapter.config)

        def shapes(part: PlacedModule) -> Shapes:
            rank = config.rank(part.module)
            return {"lora_A": (rank, part.place.d_in), "lora_B": (part.outputs, rank), "lora_E": (rank, 1)}

        modules = read_modules(adapter, layout, shapes)
        sites = layout.sites(modules)
        used = {
            part.key: _used_triplets(part, modules[part.module])
            for part in layout.parts(cls(sites=sites))
            if part.module in modules
        }
        rank = max(1, *(int(mask.sum()) for mask in used.values()))
        alpha = config.lora_alpha * rank / (config.init_r + PEFT_OFFSET)

        def convert(part: PlacedModule, tensors: Values) -> Values:
            mask, missing = used[part.key], rank - int(used[part.key].sum())
            return {
                "left": F.pad(tensors["lora_B"][part.rows][:, mask], (0, missing)),
                "sizes": F.pad(tensors["lora_E"][mask, 0], (0, missing)),
                "right": F.pad(tensors["lora_A"][mask], (0, 0, 0, missing)),
            }

        settings = cls(rank=rank, alpha=alpha, penalty=config.orth_reg_weight, sites=sites)
        return settings, values_of_modules(layout, settings, modules, convert)


def _used_triplets(part: PlacedModule, tensors: Values) -> Tensor:
    """Return which of a module's triplets, bool [R], change the outputs of a part."""
    return (tensors["lora_E"][:, 0] != 0) & (tensors["lora_B"][part.rows] != 0).any(dim=0)
