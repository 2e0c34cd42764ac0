"""The functions that edits apply. Shapes: D dimensions in, E dimensions out, R rank, M bottleneck size."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.deltas.edit import Values
from continual.sites import Place


@dataclass(frozen=True)
class LowRank:
    """x Aᵀ Bᵀ with A [R, D] and B [E, R]; starts at zero, since B does.

    Hu et al. (2022), "LoRA" (arXiv:2106.09685). A is drawn uniformly in ±1/√D, as a linear layer's weight is.
    """

    rank: int

    def start(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        bound = 1 / math.sqrt(d_read)
        a = torch.empty(self.rank, d_read).uniform_(-bound, bound, generator=generator)
        return {"A": a, "B": torch.zeros(place.d_out, self.rank)}

    def __call__(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        return F.linear(F.linear(seen, values["A"]), values["B"])


@dataclass(frozen=True)
class Bottleneck:
    """GELU(x W_downᵀ + b_down) W_upᵀ + b_up with W_down [M, D] and W_up [E, M]: 2MD + D + M parameters where E = D.

    Houlsby et al. (2019), "Parameter-Efficient Transfer Learning for NLP" (arXiv:1902.00751). Weights start as a normal
    of deviation `initial_scale`, truncated at two deviations, biases at zero: nearly, not exactly, no change.
    """

    size: int
    initial_scale: float

    def start(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        def normal(*shape: int) -> Tensor:
            bound = 2 * self.initial_scale
            return torch.nn.init.trunc_normal_(
                torch.empty(shape), std=self.initial_scale, a=-bound, b=bound, generator=generator
            )

        return {
            "down": normal(self.size, d_read),
            "down_bias": torch.zeros(self.size),
            "up": normal(place.d_out, self.size),
            "up_bias": torch.zeros(place.d_out),
        }

    def __call__(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        inner = F.gelu(F.linear(seen, values["down"], values["down_bias"]))
        return F.linear(inner, values["up"], values["up_bias"])


@dataclass(frozen=True)
class Vector:
    """A vector [E] that does not depend on the hidden state; every entry starts at `initial`."""

    initial: float

    def start(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"vector": torch.full((place.d_out,), self.initial)}

    def __call__(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        return values["vector"]
