"""(IA)³: keys, values and the feed-forward's inner states, each dimension scaled by a learned factor."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from continual.deltas.compose import Multiply
from continual.deltas.edit import Edit, Reads
from continual.deltas.forms import Vector
from continual.deltas.method import MethodSettings
from continual.deltas.methods.module_peft import is_transposed
from continual.deltas.peft_format import MODULE_PREFIX, ModuleLayout, PeftAdapter, PlacedModule, by_module
from continual.deltas.protocols import Values
from continual.errors import ExchangeError


class IA3(MethodSettings):
    """(IA)³: k ← l_k ⊙ k, v ← l_v ⊙ v and, in the feed-forward, W₂ (l_ff ⊙ f(W₁ x)); l starts at one.

    Parameters: the widths of keys and of values per attention, and of the inner states per layer. Liu et al. (2022),
    "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", arXiv:2205.05638.

    Attributes:
        cross_attention: Whether keys and values of cross-attention are scaled too.

    >>> [edit.site for edit in IA3().edits()]
    ['attn.k', 'attn.v', 'ffn.inner']
    """

    cross_attention: bool = True

    @classmethod
    def upgrade(cls, settings: Mapping[str, Any], *, generates: bool) -> dict[str, Any]:
        """Leave cross-attention alone, as deltas of format 2 do."""
        return super().upgrade(settings, generates=generates) | {"cross_attention": not generates}

    def edits(self) -> tuple[Edit, ...]:
        """Return one factor vector for keys, values and inner states of each layer."""
        attention = "attn" if self.cross_attention else "self"
        sites = (f"{attention}.k", f"{attention}.v", "ffn.inner")
        return tuple(Edit(site, Vector(1.0), Reads.OUTPUT, Multiply()) for site in sites)

    def to_peft(self, layout: ModuleLayout, values: Values) -> PeftAdapter:
        """Convert to one `ia3_l` per module: [1, d_in] of scaled inputs, [outputs, 1] of scaled outputs."""
        parts = layout.parts(self)
        tensors = {}
        for module, module_parts in by_module(parts).items():
            first = module_parts[0]
            factors = torch.ones(first.place.d_in if first.place.changes == "input" else first.outputs)
            for part in module_parts:
                factors[part.rows] = values[f"{part.key}/vector"]
            tensors[_tensor_name(module)] = factors.reshape(_tensor_shape(first))
        config = {
            "peft_type": "IA3",
            "target_modules": list(by_module(parts)),
            "feedforward_modules": list(by_module(part for part in parts if part.place.changes == "input")),
            "fan_in_fan_out": is_transposed(parts),
        }
        return PeftAdapter(config, tensors)

    @classmethod
    def from_peft(cls, adapter: PeftAdapter, layout: ModuleLayout) -> tuple[Self, dict[str, Tensor]] | None:
        """Convert an IA3 adapter; None for one of another type.

        Returns:
            Settings, and one vector [E] of each part, by key; E is the number of dimensions that the part scales.

        Raises:
            ExchangeError: Other tensors or settings, or factors of outputs that are neither keys nor values.
        """
        if adapter.config.get("peft_type") != "IA3":
            return None
        adapter.require_supported_config("feedforward_modules", "init_ia3_weights")
        parts = layout.parts(cls())
        adapter.require_tensors({_tensor_name(part.module): _tensor_shape(part) for part in parts})
        values = {
            f"{part.key}/vector": adapter.tensors[_tensor_name(part.module)].float().flatten()[part.rows]
            for part in parts
        }
        # A module with several projections has factors for outputs that no part covers; ours are one there.
        restored = cls().to_peft(layout, values).tensors
        if differing := [name for name, tensor in restored.items() if (tensor != adapter.tensors[name]).any()]:
            raise ExchangeError(f"factors of other outputs than keys and values are not one: {', '.join(differing)}")
        return cls(), values


def _tensor_name(module: str) -> str:
    return f"{MODULE_PREFIX}{module}.ia3_l"


def _tensor_shape(part: PlacedModule) -> tuple[int, int]:
    """Return PEFT's shape: a row for factors of inputs, a column for factors of outputs."""
    return (1, part.place.d_in) if part.place.changes == "input" else (part.outputs, 1)
