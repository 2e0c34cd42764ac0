"""Prefix tuning: keys and values of the delta's own, which every token attends to, before those of the text."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from continual.backbones.sites import Place
from continual.deltas.compose import Add, Concatenate
from continual.deltas.edit import Edit, Reads
from continual.deltas.method import MethodSettings
from continual.deltas.methods.prefix_forms import PrefixKeyValues, ReparameterizedPrefix
from continual.deltas.peft_format import PROMPT_TENSOR_NAME, ModuleLayout, PeftAdapter, PlacedModule
from continual.deltas.protocols import IdentityAtInit, Values
from continual.errors import ExchangeError


@dataclass(frozen=True)
class PositionShift:
    """P [B, T] more than the positions [B, T] seen; RoBERTa's padding tokens keep the one position that they share."""

    identity: ClassVar[IdentityAtInit] = "none"

    length: int

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def __call__(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        padding = getattr(place.output_module, "padding_idx", None)
        moved = torch.full_like(seen, self.length)
        return moved if padding is None else moved.masked_fill(seen == padding, 0)


class Prefix(MethodSettings):
    """Attention to [P_k; K] and [P_v; V] instead of K and V, with P_k and P_v [P, E] learned, at every layer.

    The text's positions begin at P, as if the prefix were tokens, where positions are absolute or rotary.
    reparameterise: the size of the network that the rows come out of while they are trained; 0 for none.
    Parameters: 2PE per layer as kept. Li and Liang (2021), "Prefix-Tuning", arXiv:2101.00190; without the network it
    is P-tuning v2 of Liu et al. (2022), arXiv:2110.07602.

    >>> Prefix(length=5).edits()[0].site
    'attn.kv'
    """

    length: int = Field(default=16, ge=1, le=1024)
    reparameterise: int = Field(default=0, ge=0, le=8192)
    initial_scale: float = Field(default=0.02, gt=0, allow_inf_nan=False)

    def edits(self) -> tuple[Edit, ...]:
        plain, network = (
            PrefixKeyValues(self.length, self.initial_scale),
            ReparameterizedPrefix(self.length, self.reparameterise),
        )
        positions = Edit(
            "positions", PositionShift(self.length), Reads.INPUT, Add(), added_tokens=self.length, optional=True
        )
        return (Edit("attn.kv", network if self.reparameterise else plain, Reads.INPUT, Concatenate()), positions)

    def to_peft(self, parts: Sequence[PlacedModule], values: Values) -> PeftAdapter:
        widths = _widths(parts)
        attention: Any = parts[0].place.output_module
        heads = getattr(attention.config, "num_key_value_heads", None) or attention.config.num_attention_heads
        config = {
            "peft_type": "PREFIX_TUNING",
            "num_virtual_tokens": self.length,
            "token_dim": parts[0].place.d_out,
            "num_layers": len(widths) // 2,
            "num_attention_heads": heads,
            "num_transformer_submodules": 1,
            "prefix_projection": False,
        }
        return PeftAdapter(config, {PROMPT_TENSOR_NAME: torch.cat([values[name] for name in widths], dim=1)})

    @classmethod
    def from_peft(cls, adapter: PeftAdapter, layout: ModuleLayout) -> tuple[Self, dict[str, Tensor]] | None:
        if adapter.config.get("peft_type") != "PREFIX_TUNING":
            return None
        adapter.require_supported_config("prefix_projection")  # what it makes is what is saved
        settings = cls(length=adapter.config["num_virtual_tokens"])
        widths = _widths(layout.parts(settings))
        adapter.require_tensors({PROMPT_TENSOR_NAME: (settings.length, sum(widths.values()))})
        rows = torch.split(adapter.tensors[PROMPT_TENSOR_NAME].float(), list(widths.values()), dim=1)
        return settings, dict(zip(widths, rows, strict=True))


def _widths(parts: Sequence[PlacedModule]) -> dict[str, int]:
    """The values of all layers, in PEFT's order, and how wide each is.

    Raises ExchangeError where PEFT's prefix does something else, or nothing: it is put into the cache of a model.
    """
    layers = [part for part in parts if part.place.changes == "attention"]
    attention: Any = layers[0].place.output_module
    cached = "past_key_values" in inspect.signature(attention.forward).parameters
    sliding = {"full_attention"} != {*(getattr(attention.config, "layer_types", None) or ("full_attention",))}
    if not cached or sliding or attention.config.is_encoder_decoder or len(layers) == len(parts):
        raise ExchangeError(
            "PEFT has no prefix that does the same on this model: there it goes through the cache, which must be that "
            "of a single stack, seen whole by every token, with the positions of the text behind the prefix"
        )
    return {f"{part.key}/{name}": part.place.d_out for part in layers for name in ("key", "value")}
