"""Forms of prefix tuning: keys and values learned directly, or through a network, and the shift of positions.

Shapes: P prefix vectors, E the width of an attention's keys, B rows of a batch, T tokens.
"""

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
    """Keys and values [2, P, E], which do not depend on the hidden state; they start as a normal.

    Li and Liang (2021), "Prefix-Tuning", arXiv:2101.00190.

    Attributes:
        length: P.
        initial_scale: Deviation of the normal.
    """

    identity: ClassVar[IdentityAtInit] = "none"

    length: int
    initial_scale: float

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return key and value [P, E], drawn."""
        shape = (self.length, place.d_out)
        return {name: self.initial_scale * torch.randn(shape, generator=generator) for name in ("key", "value")}

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Return key and value [2, P, E]; `inputs` is not read."""
        return torch.stack((values["key"], values["value"]))

    def canonical_form(
        self, values: Values, place: Place, *, scale: float
    ) -> tuple["PrefixKeyValues", dict[str, Tensor]]:
        """Return the form without its initial scale, and the same key and value [P, E]; `scale` has no effect."""
        return PrefixKeyValues(self.length, 0.0), dict(values)

    def batched_call(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Return each row's key and value [B, 2, P, E]."""
        return torch.stack((values["key"], values["value"]), dim=1)


@dataclass(frozen=True)
class ReparameterizedPrefix:
    """[key, value] = tanh(P' W₁ᵀ + b₁) W₂ᵀ + b₂ with P' [P, D], W₁ [M, D] and W₂ [2E, M].

    P', W₁ and b₁ are common to all layers, W₂ and b₂ are not. This trains more stably; the final values are the keys
    and values themselves (Li and Liang 2021, section 4.3).

    Attributes:
        length: P.
        size: M, the width of the network's hidden layer.
    """

    identity: ClassVar[IdentityAtInit] = "none"

    length: int
    size: int

    def init_shared(self, places: Sequence[Place], generator: torch.Generator) -> dict[str, Tensor]:
        """Return P' [P, D] and W₁ [M, D], drawn, and b₁ [M], zero; D is the width of a hidden state."""
        width = places[0].d_in
        return {
            "rows": torch.randn(self.length, width, generator=generator),
            "inner": _uniform(self.size, width, generator),
            "inner_bias": torch.zeros(self.size),
        }

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return W₂ [2E, M], drawn, and b₂ [2E], zero."""
        return {"outer": _uniform(2 * place.d_out, self.size, generator), "outer_bias": torch.zeros(2 * place.d_out)}

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Return key and value [2, P, E]; `inputs` is not read."""
        if "key" in values:
            return torch.stack((values["key"], values["value"]))
        hidden = torch.tanh(F.linear(values["rows"], values["inner"], values["inner_bias"]))
        return torch.stack(F.linear(hidden, values["outer"], values["outer_bias"]).chunk(2, dim=1))

    def canonical_form(
        self, values: Values, place: Place, *, scale: float
    ) -> tuple[PrefixKeyValues, dict[str, Tensor]] | None:
        """Return final key and value [P, E] as a `PrefixKeyValues`; None while the network is trained."""
        return (PrefixKeyValues(self.length, 0.0), dict(values)) if "key" in values else None

    def finalize(self, values: Values, place: Place) -> dict[str, Tensor]:
        """Compute key and value [P, E]."""
        key, value = self(values, values.get("rows", torch.empty(0)), place)
        return {"key": key.clone(), "value": value.clone()}


@dataclass(frozen=True)
class PositionShift:
    """A form without values that adds P to every position, except RoBERTa's padding position.

    Attributes:
        length: P.
    """

    identity: ClassVar[IdentityAtInit] = "none"

    length: int

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return an empty dict: no values of any shape."""
        return {}

    def __call__(self, values: Values, positions: Tensor, place: Place) -> Tensor:
        """Return what to add to positions [B, T]: P [B, T], and 0 for padding."""
        padding = getattr(place.output_module, "padding_idx", None)
        shift = torch.full_like(positions, self.length)
        return shift if padding is None else shift.masked_fill(positions == padding, 0)


def _uniform(d_out: int, d_in: int, generator: torch.Generator) -> Tensor:
    """Draw a weight [d_out, d_in] uniformly in ±1/√d_in."""
    return torch.empty(d_out, d_in).uniform_(-1, 1, generator=generator) / math.sqrt(d_in)
