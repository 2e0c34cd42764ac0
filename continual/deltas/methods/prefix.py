"""Prefix tuning: learned keys and values before those of the text, which every token attends to."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from continual.backbones.arguments import CACHE_ARGUMENTS, cache_argument
from continual.backbones.rotary import can_rotate_keys, rotate_keys
from continual.deltas.compose import Add, Concatenate
from continual.deltas.edit import Edit, Reads
from continual.deltas.method import MethodSettings, Preset, Scale
from continual.deltas.methods.prefix_forms import PositionShift, PrefixKeyValues, ReparameterizedPrefix
from continual.deltas.peft_format import PROMPT_TENSOR_NAME, ModuleLayout, PeftAdapter, PlacedModule
from continual.deltas.protocols import Values
from continual.errors import ExchangeError


class Prefix(MethodSettings):
    """Prefix tuning: attention to [P_k; K] and [P_v; V] instead of K and V at every layer.

    P_k and P_v, learned, are [P, E]. Parameters: 2PE per attention as stored.

    Li and Liang (2021), "Prefix-Tuning", arXiv:2101.00190; without the network it is P-tuning v2 of Liu et al. (2022),
    arXiv:2110.07602.

    Attributes:
        length: P.
        reparameterise: The hidden size of the network that computes the rows during training; 0 for none.
        initial_scale: The standard deviation of the initial values.
        cross_attention: Whether cross-attention has a prefix too.
        shift_positions: Whether absolute and rotary positions of the text begin at P, as in PEFT, where the prefix is a
            cache of tokens; otherwise at 0, as in He et al. (2022), arXiv:2110.04366, and the library adapters.

    >>> Prefix(length=5).edits()[0].site
    'attn.kv'
    """

    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": {"length": 10, "reparameterise": 512},
        "delta_tuning": {"length": 5, "reparameterise": 512},
    }

    length: int = Field(default=16, ge=1, le=1024)
    reparameterise: int = Field(default=0, ge=0, le=8192)
    initial_scale: Scale = 0.02
    cross_attention: bool = True
    shift_positions: bool = False

    @classmethod
    def upgrade(cls, settings: Mapping[str, Any], *, generates: bool) -> dict[str, Any]:
        """Shift positions and leave cross-attention alone, as deltas of format 2 do."""
        settings = super().upgrade(settings, generates=generates)
        return settings | {"shift_positions": True, "cross_attention": not generates}

    def edits(self) -> tuple[Edit, ...]:
        """Return the prefixed keys and values of every attention, and the shift of the text's positions, if any."""
        rows = PrefixKeyValues(self.length, self.initial_scale)
        form = ReparameterizedPrefix(self.length, self.reparameterise) if self.reparameterise else rows
        prefix = Edit("attn.kv" if self.cross_attention else "self.kv", form, Reads.INPUT, Concatenate())
        shift = PositionShift(self.length)
        positions = Edit("positions", shift, Reads.INPUT, Add(), added_tokens=self.length, optional=True)
        return (prefix, positions) if self.shift_positions else (prefix,)

    def to_peft(self, layout: ModuleLayout, values: Values) -> PeftAdapter:
        """Return PEFT's adapter: the [P, E] keys and values of all layers side by side in one tensor.

        Where the text's positions begin at 0 and are rotary, the keys are rotated by P, since only differences between
        positions count there.

        Raises:
            ExchangeError: PEFT's prefix does something else on this model.
        """
        parts = layout.parts(self.model_copy(update={"shift_positions": True}))
        widths = _widths(parts, shifted=self.shift_positions)
        attention: Any = parts[0].place.output_module
        if not self.shift_positions:
            values = {name: self._shifted(values[name], name, parts) for name in widths}
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

    def _shifted(self, rows: Tensor, name: str, parts: Sequence[PlacedModule]) -> Tensor:
        """Return values [P, E] that do the same where the text begins at P: keys turned by P, all others unchanged."""
        if not name.endswith("/key"):
            return rows
        attention = next(part.place.output_module for part in parts if name == f"{part.key}/key")
        return rotate_keys(_rotary_of(parts), attention, rows, position=self.length)

    @classmethod
    def from_peft(cls, adapter: PeftAdapter, layout: ModuleLayout) -> tuple[Self, dict[str, Tensor]] | None:
        """Read settings and values [P, E] from PEFT's adapter; None for another type of adapter."""
        if adapter.config.get("peft_type") != "PREFIX_TUNING":
            return None
        adapter.require_supported_config("prefix_projection")  # the file holds the projection's output
        settings = cls(length=adapter.config["num_virtual_tokens"], shift_positions=True)
        widths = _widths(layout.parts(settings), shifted=True)
        adapter.require_tensors({PROMPT_TENSOR_NAME: (settings.length, sum(widths.values()))})
        rows = torch.split(adapter.tensors[PROMPT_TENSOR_NAME].float(), list(widths.values()), dim=1)
        return settings, dict(zip(widths, rows, strict=True))


def _rotary_of(parts: Sequence[PlacedModule]) -> nn.Module:
    """Return the module that takes the positions."""
    return next(part.place.output_module for part in parts if part.place.changes != "attention")


def _widths(parts: Sequence[PlacedModule], *, shifted: bool) -> dict[str, int]:
    """Return the widths of the values of all layers, by name in PEFT's order.

    Args:
        parts: The edits of a prefix with `shift_positions`.
        shifted: Whether the delta has that setting.

    Raises:
        ExchangeError: PEFT's prefix, which goes through the key-value cache, does something else on this model.
    """
    layers = [part for part in parts if part.place.changes == "attention"]
    attention: Any = layers[0].place.output_module
    default = "sliding_attention" if getattr(attention.config, "sliding_window", None) else "full_attention"
    layer_types = {*(getattr(attention.config, "layer_types", None) or (default,))}
    obstacles = {
        f"{type(attention).__name__} takes no cache ({' or '.join(CACHE_ARGUMENTS)})": cache_argument(attention)
        is None,
        f"its layers' attention is {', '.join(sorted(layer_types))}": layer_types != {"full_attention"},
        "it is an encoder-decoder": attention.config.is_encoder_decoder,
        "it has no positions that could begin behind the prefix": len(layers) == len(parts),
        "its positions begin at 0 and are none that are rotated by fixed angles; learn the prefix with "
        "shift_positions: true": not shifted
        and len(layers) < len(parts)
        and not can_rotate_keys(_rotary_of(parts), attention),
    }
    if reasons := [reason for reason, present in obstacles.items() if present]:
        raise ExchangeError(
            f"PEFT has no prefix that does the same on this model: {'; '.join(reasons)}. There it goes through the "
            "cache, which must belong to a single stack, seen whole by every token, with the positions of the text "
            "behind the prefix"
        )
    return {f"{part.key}/{name}": part.place.d_out for part in layers for name in ("key", "value")}
