"""Prefix tuning: keys and values of the delta's own, which every token attends to, before those of the text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from continual.deltas.edit import Add, Concatenate, Edit, Identity, Reads, Values
from continual.deltas.method import MethodSettings
from continual.sites import Place


@dataclass(frozen=True)
class Rows:
    """Keys and values [2, P, E], E the width of an attention's keys, drawn as a normal of deviation `initial_scale`."""

    identity: ClassVar[Identity] = "none"

    length: int
    initial_scale: float

    def start(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        shape = (self.length, place.d_out)
        return {name: self.initial_scale * torch.randn(shape, generator=generator) for name in ("key", "value")}

    def __call__(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        return torch.stack((values["key"], values["value"]))


@dataclass(frozen=True)
class Shifted:
    """P [B, T] more than the positions [B, T] seen; RoBERTa's padding tokens keep the one position that they share."""

    identity: ClassVar[Identity] = "none"

    length: int

    def start(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def __call__(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        padding = getattr(place.exit, "padding_idx", None)
        moved = torch.full_like(seen, self.length)
        return moved if padding is None else moved.masked_fill(seen == padding, 0)


@dataclass(frozen=True)
class Reparameterised:
    """[key, value] = tanh(P' W₁ᵀ + b₁) W₂ᵀ + b₂, with P' [P, D], W₁ [M, D] common to all layers, W₂ [2E, M] not.

    Trained so it is steadier; the keys and values that come out are what is kept (Li and Liang 2021, section 4.3).
    """

    identity: ClassVar[Identity] = "none"

    length: int
    size: int

    def shared(self, places: Sequence[Place], generator: torch.Generator) -> dict[str, Tensor]:
        width = places[0].d_in
        return {
            "rows": torch.randn(self.length, width, generator=generator),
            "inner": _uniform(self.size, width, generator),
            "inner_bias": torch.zeros(self.size),
        }

    def start(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"outer": _uniform(2 * place.d_out, self.size, generator), "outer_bias": torch.zeros(2 * place.d_out)}

    def __call__(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        if "key" in values:
            return torch.stack((values["key"], values["value"]))
        inner = torch.tanh(F.linear(values["rows"], values["inner"], values["inner_bias"]))
        return torch.stack(F.linear(inner, values["outer"], values["outer_bias"]).chunk(2, dim=1))

    def finished(self, values: Values, place: Place) -> dict[str, Tensor]:
        key, value = self(values, values.get("rows", torch.empty(0)), place)
        return {"key": key.clone(), "value": value.clone()}


def _uniform(d_out: int, d_in: int, generator: torch.Generator) -> Tensor:
    return torch.empty(d_out, d_in).uniform_(-1, 1, generator=generator) / math.sqrt(d_in)


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
        plain, network = Rows(self.length, self.initial_scale), Reparameterised(self.length, self.reparameterise)
        positions = Edit("positions", Shifted(self.length), Reads.INPUT, Add(), added_tokens=self.length, optional=True)
        return (Edit("attn.kv", network if self.reparameterise else plain, Reads.INPUT, Concatenate()), positions)
