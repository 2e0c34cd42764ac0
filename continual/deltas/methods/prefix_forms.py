"""The rows of a prefix: what is learned of them, directly or through a network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.sites import Place
from continual.deltas.protocols import IdentityAtInit, Values


@dataclass(frozen=True)
class PrefixKeyValues:
    """Keys and values [2, P, E], E the width of an attention's keys, drawn as a normal of deviation `initial_scale`."""

    identity: ClassVar[IdentityAtInit] = "none"

    length: int
    initial_scale: float

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        shape = (self.length, place.d_out)
        return {name: self.initial_scale * torch.randn(shape, generator=generator) for name in ("key", "value")}

    def __call__(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        return torch.stack((values["key"], values["value"]))

    def canonical_form(
        self, values: Values, place: Place, *, scale: float
    ) -> tuple["PrefixKeyValues", dict[str, Tensor]]:
        return PrefixKeyValues(self.length, 0.0), dict(values)

    def batched_call(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        return torch.stack((values["key"], values["value"]), dim=1)


@dataclass(frozen=True)
class ReparameterizedPrefix:
    """[key, value] = tanh(P' W₁ᵀ + b₁) W₂ᵀ + b₂, with P' [P, D], W₁ [M, D] common to all layers, W₂ [2E, M] not.

    Trained so it is steadier; the keys and values that come out are what is kept (Li and Liang 2021, section 4.3).
    """

    identity: ClassVar[IdentityAtInit] = "none"

    length: int
    size: int

    def init_shared(self, places: Sequence[Place], generator: torch.Generator) -> dict[str, Tensor]:
        width = places[0].d_in
        return {
            "rows": torch.randn(self.length, width, generator=generator),
            "inner": _uniform(self.size, width, generator),
            "inner_bias": torch.zeros(self.size),
        }

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"outer": _uniform(2 * place.d_out, self.size, generator), "outer_bias": torch.zeros(2 * place.d_out)}

    def __call__(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        if "key" in values:
            return torch.stack((values["key"], values["value"]))
        inner = torch.tanh(F.linear(values["rows"], values["inner"], values["inner_bias"]))
        return torch.stack(F.linear(inner, values["outer"], values["outer_bias"]).chunk(2, dim=1))

    def canonical_form(
        self, values: Values, place: Place, *, scale: float
    ) -> tuple[PrefixKeyValues, dict[str, Tensor]] | None:
        """Of values as they are kept, the rows themselves."""
        return (PrefixKeyValues(self.length, 0.0), dict(values)) if "key" in values else None

    def finalize(self, values: Values, place: Place) -> dict[str, Tensor]:
        key, value = self(values, values.get("rows", torch.empty(0)), place)
        return {"key": key.clone(), "value": value.clone()}


def _uniform(d_out: int, d_in: int, generator: torch.Generator) -> Tensor:
    return torch.empty(d_out, d_in).uniform_(-1, 1, generator=generator) / math.sqrt(d_in)
