"""LoRA: a low-rank change of projections, and its tensors in PEFT.

Shapes: D inputs and E outputs of a module, R rank, n parts (projections) in one module.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from continual.deltas.compose import Add
from continual.deltas.edit import Edit, Reads
from continual.deltas.forms import LowRank
from continual.deltas.method import MethodSettings, Preset
from continual.deltas.peft_format import MODULE_PREFIX, ModuleLayout, PeftAdapter, PlacedModule, by_module
from continual.deltas.protocols import Values
from continual.errors import ExchangeError


class LoRA(MethodSettings):
    """LoRA: y ← y + (alpha / rank) · x Aᵀ Bᵀ at every projection of the blocks, or at some sites.

    Parameters: rank · (d_in + d_out) per projection. Hu et al. (2022), arXiv:2106.09685, edit query and value only;
    Dettmers et al. (2023), "QLoRA", arXiv:2305.14314, find that full fine-tuning is only reached
    with every projection.

    Attributes:
        rank: R.
        alpha: Numerator of the scale.
        sites: Sites or groups of linear layers.

    >>> [edit.site for edit in LoRA(rank=4, sites=("attn.q", "attn.v")).edits()]
    ['attn.q', 'attn.v']
    """

    PRESETS: ClassVar[Mapping[str, Preset]] = {"paper": {"rank": 8, "alpha": 8.0, "sites": ("attn.q", "attn.v")}}

    rank: int = Field(default=8, ge=1, le=4096)
    alpha: float = Field(default=8.0, gt=0, allow_inf_nan=False)
    sites: tuple[str, ...] = Field(default=("projections",), min_length=1)

    def edits(self) -> tuple[Edit, ...]:
        """Return one low-rank edit per site."""
        form, compose = LowRank(self.rank), Add(self.alpha / self.rank)
        return tuple(Edit(site, form, Reads.INPUT, compose) for site in self.sites)

    def to_peft(self, parts: Sequence[PlacedModule], values: Values) -> PeftAdapter:
        """Convert to PEFT's LoRA tensors, as `low_rank_to_peft` describes."""
        return low_rank_to_peft(parts, values, rank=self.rank, alpha=self.alpha)

    @classmethod
    def from_peft(cls, adapter: PeftAdapter, layout: ModuleLayout) -> tuple[Self, dict[str, Tensor]] | None:
        """Convert a LoRA adapter without `use_dora`; None for any other.

        Returns:
            Settings, and A [R, D] and B [d_out, R] of each part, by key.

        Raises:
            ExchangeError: Other tensors or settings.
        """
        if adapter.config.get("peft_type") != "LORA" or adapter.config.get("use_dora"):
            return None
        sites = layout.sites(adapter.module_names())
        parts = layout.parts(cls(sites=sites))
        adapter.require_tensors(low_rank_shapes(adapter, parts))
        rank, alpha, values = low_rank_from_peft(adapter, parts)
        return cls(rank=rank, alpha=alpha, sites=sites), values


# PEFT's other initializations change the weights of the base model.
SUPPORTED_INIT_LORA_WEIGHTS = (True, False, None, "gaussian", "eva", "orthogonal")


def low_rank_to_peft(parts: Sequence[PlacedModule], values: Values, *, rank: int, alpha: float) -> PeftAdapter:
    """Convert A [R, D] and B [d_out, R] of every part to PEFT's tensors, one pair per module.

    A module of n parts gets the parts' A, one below the other [nR, D], and a B [E, nR] with one block per part.

    Args:
        parts: Every edit at every place.
        values: `A` and `B` of each part, by key.
        rank: R.
        alpha: Numerator of the scale.
    """
    tensors: dict[str, Tensor] = {}
    part_counts: dict[str, int] = {}  # of modules with several parts
    for module, module_parts in by_module(parts).items():
        b = torch.zeros(module_parts[0].outputs, len(module_parts) * rank)
        for number, part in enumerate(module_parts):
            b[part.rows, number * rank : (number + 1) * rank] = values[f"{part.key}/B"]
        tensors[f"{MODULE_PREFIX}{module}.lora_A.weight"] = torch.cat(
            [values[f"{part.key}/A"] for part in module_parts]
        )
        tensors[f"{MODULE_PREFIX}{module}.lora_B.weight"] = b
        part_counts |= {module: len(module_parts)} if len(module_parts) > 1 else {}
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(isinstance(part.place.output_module, Conv1D) for part in parts),
        "target_modules": list(by_module(parts)),
        "rank_pattern": {module: n * rank for module, n in part_counts.items()},
        "alpha_pattern": {module: n * alpha for module, n in part_counts.items()},
    }
    return PeftAdapter(config, tensors)


def low_rank_shapes(adapter: PeftAdapter, parts: Sequence[PlacedModule]) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the tensors of these parts must have, by PEFT's names: A [R, D] and B [E, R].

    Raises:
        ExchangeError: The adapter is more than a plain low-rank change.
    """
    adapter.require_supported_config("rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "init_lora_weights")
    if (init := adapter.config.get("init_lora_weights")) not in SUPPORTED_INIT_LORA_WEIGHTS:
        raise ExchangeError(f"init_lora_weights {init!r} changed the base model too; save it as a plain LoRA first")
    shapes: dict[str, tuple[int, ...]] = {}
    for module, module_parts in by_module(parts).items():
        rank, _ = _rank_and_scale(adapter.config, module)
        shapes[f"{MODULE_PREFIX}{module}.lora_A.weight"] = (rank, module_parts[0].place.d_in)
        shapes[f"{MODULE_PREFIX}{module}.lora_B.weight"] = (module_parts[0].outputs, rank)
    return shapes


def low_rank_from_peft(adapter: PeftAdapter, parts: Sequence[PlacedModule]) -> tuple[int, float, dict[str, Tensor]]:
    """Convert PEFT's tensors to one rank and scale for all parts.

    Smaller ranks are padded with zeros, and B is rescaled where a module's scale differs from the first one's.

    Args:
        adapter: With tensors of the shapes of `low_rank_shapes`.
        parts: Every edit at every place.

    Returns:
        Rank R, alpha, and the values A [R, D] and B [d_out, R] of each part, by key.
    """
    low_rank = {}
    for module, module_parts in by_module(parts).items():
        a, b = (adapter.tensors[f"{MODULE_PREFIX}{module}.lora_{name}.weight"].float() for name in "AB")
        for part in module_parts:
            used = (b[part.rows] != 0).any(dim=0) | (len(module_parts) == 1)  # each of several parts uses its own block
            low_rank[part.key] = (a[used], b[part.rows][:, used], _rank_and_scale(adapter.config, module)[1])
    rank = max(1, *(len(a) for a, _, _ in low_rank.values()))
    scale = next(iter(low_rank.values()))[2]
    values = {}
    for key, (a, b, part_scale) in low_rank.items():
        values[f"{key}/A"] = F.pad(a, (0, 0, 0, rank - len(a)))
        values[f"{key}/B"] = F.pad(b * (part_scale / scale), (0, rank - len(a)))
    return rank, scale * rank, values


def _rank_and_scale(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """Return rank and scale of a module: of the first matching pattern, as in PEFT, else the common ones."""
    ranks, alphas = (config.get(name) or {} for name in ("rank_pattern", "alpha_pattern"))
    key = next((key for key in (*ranks, *alphas) if re.match(rf"(.*\.)?({key})$", module)), module)
    rank, alpha = int(ranks.get(key, config["r"])), float(alphas.get(key, config["lora_alpha"]))
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
