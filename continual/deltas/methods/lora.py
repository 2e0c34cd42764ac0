"""LoRA: a low-rank change of projections."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from continual.deltas.compose import Add
from continual.deltas.edit import Edit, Reads
from continual.deltas.forms import LowRank
from continual.deltas.method import MethodSettings
from continual.deltas.peft_format import MODULE_PREFIX, ModuleLayout, PeftAdapter, PlacedModule, by_module
from continual.deltas.protocols import Values
from continual.errors import ExchangeError


class LoRA(MethodSettings):
    """y ← y + (alpha / rank) · x Aᵀ Bᵀ at every projection of the blocks, or at the `sites` named.

    Parameters: rank · (d_in + d_out) per projection. Hu et al. (2022), arXiv:2106.09685, edit query and value only;
    Dettmers et al. (2023), "QLoRA", arXiv:2305.14314, find that it takes every projection to reach full fine-tuning.

    >>> [edit.site for edit in LoRA(rank=4, sites=("attn.q", "attn.v")).edits()]
    ['attn.q', 'attn.v']
    """

    rank: int = Field(default=8, ge=1, le=4096)
    alpha: float = Field(default=8.0, gt=0, allow_inf_nan=False)
    sites: tuple[str, ...] = Field(default=("projections",), min_length=1)

    def edits(self) -> tuple[Edit, ...]:
        form, compose = LowRank(self.rank), Add(self.alpha / self.rank)
        return tuple(Edit(site, form, Reads.INPUT, compose) for site in self.sites)

    def to_peft(self, parts: Sequence[PlacedModule], values: Values) -> PeftAdapter:
        return low_rank_to_peft(parts, values, rank=self.rank, alpha=self.alpha)

    @classmethod
    def from_peft(cls, adapter: PeftAdapter, layout: ModuleLayout) -> tuple[Self, dict[str, Tensor]] | None:
        if adapter.config.get("peft_type") != "LORA" or adapter.config.get("use_dora"):
            return None
        sites = layout.sites(adapter.module_names())
        parts = layout.parts(cls(sites=sites))
        adapter.require_tensors(low_rank_shapes(adapter, parts))
        rank, alpha, values = low_rank_from_peft(adapter, parts)
        return cls(rank=rank, alpha=alpha, sites=sites), values


# With any other of PEFT's starts the weights of the base model are not what they were.
SUPPORTED_INIT_LORA_WEIGHTS = (True, False, None, "gaussian", "eva", "orthogonal")


def low_rank_to_peft(parts: Sequence[PlacedModule], values: Values, *, rank: int, alpha: float) -> PeftAdapter:
    """A and B of every module; of one in several parts, A [nR, D] one below the other and B [E, nR] in blocks."""
    tensors: dict[str, Tensor] = {}
    several: dict[str, int] = {}
    for module, own in by_module(parts).items():
        b = torch.zeros(own[0].outputs, len(own) * rank)
        for number, part in enumerate(own):
            b[part.rows, number * rank : (number + 1) * rank] = values[f"{part.key}/B"]
        tensors[f"{MODULE_PREFIX}{module}.lora_A.weight"] = torch.cat([values[f"{part.key}/A"] for part in own])
        tensors[f"{MODULE_PREFIX}{module}.lora_B.weight"] = b
        several |= {module: len(own)} if len(own) > 1 else {}
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(isinstance(part.place.output_module, Conv1D) for part in parts),
        "target_modules": list(by_module(parts)),
        "rank_pattern": {module: n * rank for module, n in several.items()},
        "alpha_pattern": {module: n * alpha for module, n in several.items()},
    }
    return PeftAdapter(config, tensors)


def low_rank_shapes(adapter: PeftAdapter, parts: Sequence[PlacedModule]) -> dict[str, tuple[int, ...]]:
    """What the tensors of these parts should be, by PEFT's names.

    Raises ExchangeError where the adapter is more than a plain low-rank change.
    """
    adapter.require_supported_config("rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "init_lora_weights")
    if (start := adapter.config.get("init_lora_weights")) not in SUPPORTED_INIT_LORA_WEIGHTS:
        raise ExchangeError(f"init_lora_weights {start!r} changed the base model too; save it as a plain LoRA first")
    shapes: dict[str, tuple[int, ...]] = {}
    for module, own in by_module(parts).items():
        rank, _ = _rank_and_scale(adapter.config, module)
        shapes[f"{MODULE_PREFIX}{module}.lora_A.weight"] = (rank, own[0].place.d_in)
        shapes[f"{MODULE_PREFIX}{module}.lora_B.weight"] = (own[0].outputs, rank)
    return shapes


def low_rank_from_peft(adapter: PeftAdapter, parts: Sequence[PlacedModule]) -> tuple[int, float, dict[str, Tensor]]:
    """Rank, alpha and values of the parts; smaller ranks are filled up with zeros, other scales go into B."""
    found = {}
    for module, own in by_module(parts).items():
        a, b = (adapter.tensors[f"{MODULE_PREFIX}{module}.lora_{name}.weight"].float() for name in "AB")
        for part in own:
            used = (b[part.rows] != 0).any(dim=0) | (len(own) == 1)  # a part of several has blocks of its own
            found[part.key] = (a[used], b[part.rows][:, used], _rank_and_scale(adapter.config, module)[1])
    rank = max(1, *(len(a) for a, _, _ in found.values()))
    scale = next(iter(found.values()))[2]
    values = {}
    for key, (a, b, own_scale) in found.items():
        values[f"{key}/A"] = F.pad(a, (0, 0, 0, rank - len(a)))
        values[f"{key}/B"] = F.pad(b * (own_scale / scale), (0, rank - len(a)))
    return rank, scale * rank, values


def _rank_and_scale(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """As PEFT finds them: by the first pattern that the end of the module's name matches, else the common ones."""
    ranks, alphas = (config.get(name) or {} for name in ("rank_pattern", "alpha_pattern"))
    key = next((key for key in (*ranks, *alphas) if re.match(rf"(.*\.)?({key})$", module)), module)
    rank, alpha = int(ranks.get(key, config["r"])), float(alphas.get(key, config["lora_alpha"]))
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
