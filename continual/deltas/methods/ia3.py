"""(IA)³: keys, values and the feed-forward's inner states, each dimension scaled."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from continual.deltas.compose import Multiply
from continual.deltas.edit import Edit, Reads
from continual.deltas.forms import Vector
from continual.deltas.method import MethodSettings
from continual.deltas.peft_format import MODULE_PREFIX, ModuleLayout, PeftAdapter, PlacedModule, by_module
from continual.deltas.protocols import Values
from continual.errors import ExchangeError


class IA3(MethodSettings):
    """k ← l_k ⊙ k,  v ← l_v ⊙ v,  and in the feed-forward W₂ (l_ff ⊙ f(W₁ x)); every l starts at one.

    Parameters: the widths of keys, of values and of the inner states, per layer. Liu et al. (2022), "Few-Shot
    Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", arXiv:2205.05638.

    >>> [edit.site for edit in IA3().edits()]
    ['attn.k', 'attn.v', 'ffn.inner']
    """

    def edits(self) -> tuple[Edit, ...]:
        sites = ("attn.k", "attn.v", "ffn.inner")
        return tuple(Edit(site, Vector(1.0), Reads.OUTPUT, Multiply()) for site in sites)

    def to_peft(self, parts: Sequence[PlacedModule], values: Values) -> PeftAdapter:
        tensors = {}
        for module, own in by_module(parts).items():
            inner = own[0].place.changes == "input"
            factors = torch.ones(own[0].place.d_in if inner else own[0].outputs)
            for part in own:
                factors[part.rows] = values[f"{part.key}/vector"]
            tensors[_name(module)] = factors.reshape(_shape(own[0]))
        config = {
            "peft_type": "IA3",
            "target_modules": list(by_module(parts)),
            "feedforward_modules": list(by_module(part for part in parts if part.place.changes == "input")),
            "fan_in_fan_out": any(isinstance(part.place.output_module, Conv1D) for part in parts),
        }
        return PeftAdapter(config, tensors)

    @classmethod
    def from_peft(cls, adapter: PeftAdapter, layout: ModuleLayout) -> tuple[Self, dict[str, Tensor]] | None:
        if adapter.config.get("peft_type") != "IA3":
            return None
        adapter.require_supported_config("feedforward_modules", "init_ia3_weights")
        parts = layout.parts(cls())
        adapter.require_tensors({_name(part.module): _shape(part) for part in parts})
        values = {
            f"{part.key}/vector": adapter.tensors[_name(part.module)].float().flatten()[part.rows] for part in parts
        }
        if others := [
            name for name, own in cls().to_peft(parts, values).tensors.items() if (own != adapter.tensors[name]).any()
        ]:
            raise ExchangeError(f"factors of other outputs than keys and values are not one: {', '.join(others)}")
        return cls(), values


def _name(module: str) -> str:
    return f"{MODULE_PREFIX}{module}.ia3_l"


def _shape(part: PlacedModule) -> tuple[int, int]:
    """PEFT scales inputs by a row and outputs by a column."""
    return (1, part.place.d_in) if part.place.changes == "input" else (part.outputs, 1)
