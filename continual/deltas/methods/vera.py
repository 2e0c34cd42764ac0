"""VeRA: trained scales between two random projections that all places have in common.

Shapes: D inputs and E outputs of a projection, R rank, B rows of a batch, T tokens.
"""

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from continual.deltas.compose import Add
from continual.deltas.edit import Edit, Reads
from continual.deltas.method import MethodSettings, Sites
from continual.deltas.methods.module_peft import (
    Shapes,
    is_transposed,
    modules_to_peft,
    read_modules,
    values_of_modules,
)
from continual.deltas.methods.peft_configs import VeRAConfig
from continual.deltas.methods.vera_forms import ScaledRandomProjections, StoredProjections, rows_of
from continual.deltas.methods.vera_peft import PEFT_A, PEFT_B, projection_blocks, read_projections
from continual.deltas.peft_format import ModuleLayout, PeftAdapter, PlacedModule
from continual.deltas.protocols import Values
from continual.deltas.values import SHARED_PREFIX


class VeRA(MethodSettings):
    """VeRA: y ← y + b ⊙ (d ⊙ x Aᵀ) Bᵀ at every projection, with trained vectors d and b only.

    A and B are random and fixed, and all places share them: one of fewer inputs or outputs takes the first columns of A
    or rows of B (A scaled by its own inputs, where PEFT scales by the most). Parameters: rank + d_out per projection.
    Kopiczko et al. (2024), "VeRA: Vector-based Random Matrix Adaptation", arXiv:2310.11454.

    Attributes:
        rank: Rank of A and B.
        initial_scale: The entries of a fresh d.
        seed: Seed of A and B.
        projections: `drawn` from the seed whenever they are needed, or `stored` in the delta, one pair for each entry
            of `sites`, as adapters of PEFT's have them.
        sites: Sites or groups of linear layers.

    >>> VeRA(rank=64).edits()[0].site
    'projections'
    """

    rank: int = Field(default=256, ge=1, le=65536)
    initial_scale: float = Field(default=0.1, gt=0, allow_inf_nan=False, description="entries of a fresh d")
    seed: int = Field(default=0, ge=0)
    projections: Literal["drawn", "stored"] = "drawn"
    sites: Sites = ("projections",)

    def edits(self) -> tuple[Edit, ...]:
        """Return one scaled projection per site."""
        return tuple(Edit(site, self._form, Reads.INPUT, Add()) for site in self.sites)

    @property
    def _form(self) -> ScaledRandomProjections | StoredProjections:
        form = StoredProjections if self.projections == "stored" else ScaledRandomProjections
        return form(self.rank, self.initial_scale, self.seed)

    def to_peft(self, layout: ModuleLayout, values: Values) -> PeftAdapter:
        """Convert to PEFT's d [nR] and b [E] per module, and A [nR, D] and B [E, nR], which are saved.

        There are n blocks of R dimensions: one for whole modules, and one for every place that a projection has in a
        module of several, if these have scales d of their own. d is zero in the blocks of others.
        """
        parts = layout.parts(self)
        blocks = projection_blocks(parts, values, self._form)
        numbers = {name: number for number, name in enumerate(dict.fromkeys(block.name for block in blocks.values()))}
        size = len(numbers) * self.rank
        a = torch.zeros(size, max(part.place.d_in for part in parts))
        b = torch.zeros(max(part.outputs for part in parts), size)
        for part in parts:
            block, first = blocks[part.key], numbers[blocks[part.key].name] * self.rank
            a[first : first + self.rank, : part.place.d_in] = block.a
            b[rows_of(part.place), first : first + self.rank] = block.b

        def convert(parts: Sequence[PlacedModule], values: Sequence[Values]) -> Values:
            d, outputs = torch.zeros(size), torch.zeros(parts[0].outputs)
            for part, part_values in zip(parts, values, strict=True):
                block = blocks[part.key]
                d[numbers[block.name] * self.rank :][: self.rank] = block.scale * part_values["d"]
                outputs[part.rows] = part_values["b"]
            return {"vera_lambda_d": d, "vera_lambda_b": outputs}

        adapter = modules_to_peft(
            parts,
            values,
            convert,
            peft_type="VERA",
            r=size,
            save_projection=True,
            projection_prng_key=self.seed,
            d_initial=self.initial_scale,
            bias="none",
            fan_in_fan_out=is_transposed(parts),
        )
        return PeftAdapter(adapter.config, {**adapter.tensors, PEFT_A: a, PEFT_B: b})

    @classmethod
    def from_peft(cls, adapter: PeftAdapter, layout: ModuleLayout) -> tuple[Self, dict[str, Tensor]] | None:
        """Convert a VERA adapter; None for one of another type.

        Returns:
            Settings, A [R, D] and B [E, R], saved by PEFT or drawn as it draws them, and d [R] and b [E] of each part,
            by key. A and B are stored.

        Raises:
            ExchangeError: Other tensors or settings.
        """
        if adapter.config.get("peft_type") != "VERA":
            return None
        adapter.require_supported_config("init_weights", "save_projection")
        config = VeRAConfig.model_validate(adapter.config)

        def shapes(part: PlacedModule) -> Shapes:
            return {"vera_lambda_d": (config.r,), "vera_lambda_b": (part.outputs,)}

        modules = read_modules(adapter, layout, shapes, PEFT_A, PEFT_B)
        changed = [part for part in layout.projections() if part.module in modules]
        widths = max(part.place.d_in for part in changed), max(part.outputs for part in changed)
        projections = read_projections(adapter, config, *widths)
        settings = cls(
            rank=config.r,
            initial_scale=config.d_initial,
            seed=config.projection_prng_key,
            projections="stored",
            sites=layout.sites(modules),
        )

        def convert(part: PlacedModule, tensors: Values) -> Values:
            return {"d": tensors["vera_lambda_d"], "b": tensors["vera_lambda_b"][part.rows]}

        values = values_of_modules(layout, settings, modules, convert)
        for key in (key for key in values if key.startswith(f"{SHARED_PREFIX}/")):
            rows, columns = values[key].shape
            source = projections[key.rpartition("/")[2]][:rows, :columns]
            values[key] = F.pad(source, (0, columns - source.shape[1], 0, rows - source.shape[0]))
        return settings, values
