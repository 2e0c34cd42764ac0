"""TinyLoRA: a few trained numbers, common to all projections, between the singular vectors of their weights.

Shapes: W [E, D] the weight of a projection, R rank, U numbers, B rows of a batch, T tokens.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from continual.deltas.compose import Add
from continual.deltas.edit import Edit, Reads
from continual.deltas.method import MethodSettings, Rank, Sites
from continual.deltas.methods.lora import LoRA
from continual.deltas.methods.module_peft import (
    Shapes,
    block_columns,
    is_transposed,
    modules_to_peft,
    part_counts,
    read_modules,
    values_of_modules,
)
from continual.deltas.methods.peft_configs import TinyLoRAConfig
from continual.deltas.methods.tiny_lora_forms import RandomCores
from continual.deltas.peft_format import ModuleLayout, PeftAdapter, PlacedModule
from continual.deltas.protocols import Values
from continual.deltas.values import SHARED_PREFIX
from continual.errors import ExchangeError

PEFT_V = "base_model.tinylora_v.0"  # PEFT's tensor of no module
CPU = torch.device("cpu")


class TinyLoRA(MethodSettings):
    """TinyLoRA: W + U √Σ (Σ_u v_u P_u) √Σ Vᵀ at every projection, with one small trained vector v for all of them.

    U Σ Vᵀ is the truncated singular value decomposition of the frozen W, and the P_u are random and fixed, others at
    each projection. Parameters: `dimension`, per site or group in `sites`. Morris et al. (2026), "Learning to Reason in
    13 Parameters", arXiv:2602.04118, with Σ and P as in PEFT's implementation (`weight_tying=1.0`).

    Attributes:
        dimension: Number of entries of v.
        rank: Number of singular vectors on each side.
        seed: Seed of the P_u.
        sites: Sites or groups of linear layers.

    >>> TinyLoRA(dimension=13).edits()[0].site
    'projections'
    """

    dimension: int = Field(default=64, ge=1, le=1_000_000)
    rank: Rank = 2
    seed: int = Field(default=42, ge=0)
    sites: Sites = ("projections",)

    def edits(self) -> tuple[Edit, ...]:
        """Return one combination of random cores per site."""
        return tuple(Edit(site, self._form, Reads.INPUT, Add()) for site in self.sites)

    @property
    def _form(self) -> RandomCores:
        return RandomCores(self.rank, self.dimension, self.seed)

    def to_peft(self, layout: ModuleLayout, values: Values) -> PeftAdapter:
        """Convert to PEFT's A [R₀, D], B [E, R₀] and P [U₀, R₀, R₀] per module, which are saved, and one v [U₀].

        R₀ is n times the rank where a module computes n projections, U₀ the dimensions of all sites together. A
        projection has its own block of R₀, and its site its own of U₀; P is zero outside of them.

        Raises:
            ExchangeError: R₀ is larger than a dimension of a module of several projections.
        """
        parts = layout.parts(self)
        rank = self.rank * max(part_counts(parts).values(), default=1)

        def convert(parts: Sequence[PlacedModule], values: Sequence[Values]) -> Values:
            factors = [self._form.fixed_factors(part.place, CPU) for part in parts]
            a, b = torch.cat([a for a, _, _ in factors]), block_columns(parts, [b for _, b, _ in factors])
            size = min(rank, parts[0].place.d_in, parts[0].outputs)
            if len(a) > size:
                raise ExchangeError(
                    f"PEFT's TINYLORA needs {len(a)} singular vectors of {parts[0].module}, {self.rank} for each of "
                    f"its {len(parts)} projections, and it has {size}; export a delta of a smaller rank"
                )
            p, first = torch.zeros(len(self.sites), self.dimension, size, size), 0
            for part, (part_a, _, cores) in zip(parts, factors, strict=True):
                block = slice(first, first := first + len(part_a))
                p[int(part.key.rpartition("/")[2]), :, block, block] = cores
            missing = size - len(a)
            return {
                "tinylora_A": F.pad(a, (0, 0, 0, missing)),
                "tinylora_B": F.pad(b, (0, missing)),
                "tinylora_P": p.flatten(0, 1),
            }

        adapter = modules_to_peft(
            parts,
            values,
            convert,
            peft_type="TINYLORA",
            r=rank,
            u=self.dimension * len(self.sites),
            weight_tying=1.0,
            projection_seed=self.seed,
            save_projection=True,
            bias="none",
            fan_in_fan_out=is_transposed(parts),
        )
        v = torch.cat([values[f"{SHARED_PREFIX}/{number}/v"] for number in range(len(self.sites))])
        return PeftAdapter(adapter.config, {**adapter.tensors, PEFT_V: v})

    @classmethod
    def from_peft(cls, adapter: PeftAdapter, layout: ModuleLayout) -> tuple[LoRA, dict[str, Tensor]] | None:
        """Convert a TINYLORA adapter to a LoRA, since its random P are not those of this method; None for another type.

        Returns:
            Settings, and A [R, D] and B Σ_u v_u P_u [d_out, R] of each part, by key.

        Raises:
            ExchangeError: Other tensors or settings, or more than one v.
        """
        if adapter.config.get("peft_type") != "TINYLORA":
            return None
        adapter.require_supported_config("init_weights", "save_projection")
        config = TinyLoRAConfig.model_validate(adapter.config)
        v = adapter.tensors.get(PEFT_V, torch.empty(0)).float()
        several = any(name.startswith(PEFT_V[:-1]) and name != PEFT_V for name in adapter.tensors)
        if several or v.shape != (config.u,) or not config.save_projection:
            raise ExchangeError(
                f"the adapter has several vectors tinylora_v, no {PEFT_V} [{config.u}], or no saved projections: which "
                "modules a vector or a seed belongs to is not in the file. Save it with save_projection and "
                "weight_tying 1.0, or as a LoRA (peft.save_as_lora)"
            )

        def shapes(part: PlacedModule) -> Shapes:
            rank = min(config.r, part.place.d_in, part.outputs)
            a, b = (rank, part.place.d_in), (part.outputs, rank)
            return {"tinylora_A": a, "tinylora_B": b, "tinylora_P": (config.u, rank, rank)}

        modules = read_modules(adapter, layout, shapes, PEFT_V)
        rank = max(len(tensors["tinylora_A"]) for tensors in modules.values())

        def convert(part: PlacedModule, tensors: Values) -> Values:
            missing = rank - len(tensors["tinylora_A"])
            b = tensors["tinylora_B"][part.rows] @ torch.tensordot(v, tensors["tinylora_P"], dims=1)
            return {"A": F.pad(tensors["tinylora_A"], (0, 0, 0, missing)), "B": F.pad(b, (0, missing))}

        settings = LoRA(rank=rank, alpha=rank, sites=layout.sites(modules))
        return settings, values_of_modules(layout, settings, modules, convert)
