"""The functions that several methods apply. Shapes: D dimensions read, E changed, R rank, M bottleneck size."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.sites import Place
from continual.deltas.protocols import AffineMap, IdentityAtInit, Values

Activation = Literal["gelu", "relu", "tanh", "silu", "identity"]
ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "tanh": torch.tanh,
    "silu": F.silu,
    "identity": torch.clone,
}

MIN_SHARED_SIZE = 8  # rank or size of a bottleneck as it is kept beside others: a smaller one is no faster


def init_low_rank(rank: int, d_read: int, d_out: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A [R, D] drawn uniformly in ±1/√D, as a linear layer's weight is, and B [E, R] of zeros."""
    bound = 1 / math.sqrt(d_read)
    a = torch.empty(rank, d_read).uniform_(-bound, bound, generator=generator)
    return {"A": a, "B": torch.zeros(d_out, rank)}


def truncated_normal(shape: tuple[int, ...], scale: float, generator: torch.Generator) -> Tensor:
    """A normal of deviation `scale`, truncated at two deviations."""
    return torch.nn.init.trunc_normal_(torch.empty(shape), std=scale, a=-2 * scale, b=2 * scale, generator=generator)


def round_up_size(size: int) -> int:
    """The size in which deltas of nearly this one are kept side by side: the next power of two, 8 at least."""
    return max(MIN_SHARED_SIZE, 1 << (size - 1).bit_length())


@dataclass(frozen=True)
class LowRank:
    """x Aᵀ Bᵀ with A [R, D] and B [E, R]; starts at zero, since B does. Hu et al. (2022), "LoRA", arXiv:2106.09685."""

    identity: ClassVar[IdentityAtInit] = "exact"

    rank: int

    def supports(self, place: Place) -> bool:
        return place.is_hidden_state

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        return init_low_rank(self.rank, d_read, place.d_out, generator)

    def __call__(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        return F.linear(F.linear(seen, values["A"]), values["B"])

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        return AffineMap(values["B"] @ values["A"], None)

    def canonical_form(self, values: Values, place: Place, *, scale: float) -> tuple["LowRank", dict[str, Tensor]]:
        """The next rank of SIZES, filled up with zeros, which change nothing."""
        rank = round_up_size(self.rank)
        missing = rank - self.rank
        return LowRank(rank), {
            "A": F.pad(values["A"], (0, 0, 0, missing)),
            "B": F.pad(scale * values["B"], (0, missing)),
        }

    def batched_call(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        return torch.bmm(torch.bmm(seen, values["A"].mT), values["B"].mT)

    def weighted_average(self, values: Sequence[Values], weights: Sequence[float]) -> dict[str, Tensor]:
        """The best approximation of Σ w B A of rank R in the Frobenius norm: Eckart and Young (1936)."""
        wide = torch.cat([weight * own["B"].float() for own, weight in zip(values, weights, strict=True)], dim=1)
        tall = torch.cat([own["A"].float() for own in values])
        (q, upper), (p, lower) = torch.linalg.qr(wide), torch.linalg.qr(tall.T)
        left, sizes, right = torch.linalg.svd(upper @ lower.T)
        root = sizes[: self.rank].sqrt()
        a, b = root.unsqueeze(1) * (right[: self.rank] @ p.T), (q @ left[:, : self.rank]) * root
        missing = self.rank - len(root)
        return {"A": F.pad(a, (0, 0, 0, missing)), "B": F.pad(b, (0, missing))}


@dataclass(frozen=True)
class Bottleneck:
    """f(x W_downᵀ + b_down) W_upᵀ + b_up with W_down [M, D] and W_up [E, M]: 2MD + D + M parameters where E = D.

    Houlsby et al. (2019), "Parameter-Efficient Transfer Learning for NLP" (arXiv:1902.00751). Biases start at zero,
    weights as a normal of deviation `initial_scale`, truncated at two deviations: nearly, not exactly, no change.
    Without a scale they start as LoRA's do, W_up at zero.
    """

    size: int
    initial_scale: float | None
    activation: Activation = "gelu"

    @property
    def identity(self) -> IdentityAtInit:
        return "exact" if self.initial_scale is None else "near"

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        biases = {"down_bias": torch.zeros(self.size), "up_bias": torch.zeros(place.d_out)}
        if self.initial_scale is None:
            start = init_low_rank(self.size, d_read, place.d_out, generator)
            return {"down": start["A"], "up": start["B"], **biases}
        down = truncated_normal((self.size, d_read), self.initial_scale, generator)
        return {"down": down, "up": truncated_normal((place.d_out, self.size), self.initial_scale, generator), **biases}

    def __call__(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        inner = ACTIVATIONS[self.activation](F.linear(seen, values["down"], values["down_bias"]))
        return F.linear(inner, values["up"], values["up_bias"])

    def canonical_form(self, values: Values, place: Place, *, scale: float) -> tuple["Bottleneck", dict[str, Tensor]]:
        """The next size that others have too, filled up with units whose weights are zero."""
        size = round_up_size(self.size)
        missing = size - self.size
        return Bottleneck(size, None, self.activation), {
            "down": F.pad(values["down"], (0, 0, 0, missing)),
            "down_bias": F.pad(values["down_bias"], (0, missing)),
            "up": F.pad(scale * values["up"], (0, missing)),
            "up_bias": scale * values["up_bias"],
        }

    def batched_call(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        inner = torch.baddbmm(values["down_bias"].unsqueeze(1), seen, values["down"].mT)
        return torch.baddbmm(values["up_bias"].unsqueeze(1), ACTIVATIONS[self.activation](inner), values["up"].mT)

    def weighted_average(self, values: Sequence[Values], weights: Sequence[float]) -> dict[str, Tensor]:
        """All units side by side are the weighted sum; the M that change most, by ‖w_down‖ ‖w_up‖, are kept."""
        pairs = list(zip(values, weights, strict=True))
        down, bias = (torch.cat([own[name].float() for own, _ in pairs]) for name in ("down", "down_bias"))
        up = torch.cat([weight * own["up"].float() for own, weight in pairs], dim=1)
        kept = (down.norm(dim=1) * up.norm(dim=0)).argsort(descending=True, stable=True)[: self.size].sort().values
        up_bias = torch.stack([weight * own["up_bias"].float() for own, weight in pairs]).sum(dim=0)
        return {"down": down[kept], "up": up[:, kept], "down_bias": bias[kept], "up_bias": up_bias}


@dataclass(frozen=True)
class Vector:
    """A vector [E] that does not depend on the hidden state; every entry starts at `initial`."""

    identity: ClassVar[IdentityAtInit] = "exact"

    initial: float

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"vector": torch.full((place.d_out,), self.initial)}

    def __call__(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        return values["vector"]

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        return AffineMap(None, values["vector"])

    def canonical_form(self, values: Values, place: Place, *, scale: float) -> tuple["Vector", dict[str, Tensor]]:
        return Vector(0.0), {"vector": scale * values["vector"]}

    def batched_call(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        return values["vector"].unsqueeze(1)


@dataclass(frozen=True)
class DenseDelta:
    """x ΔWᵀ with ΔW [E, D], starting at zero: the change that another weight makes."""

    identity: ClassVar[IdentityAtInit] = "exact"

    def supports(self, place: Place) -> bool:
        return place.is_linear

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"weight": torch.zeros(place.weight.shape)}

    def __call__(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        return F.linear(seen, values["weight"])

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        return AffineMap(values["weight"], None)


@dataclass(frozen=True)
class EmbeddingDelta:
    """ΔW[i] for the rows i that an embedding looks up, with ΔW [V, E] starting at zero."""

    identity: ClassVar[IdentityAtInit] = "exact"

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"weight": torch.zeros(place.weight.shape)}

    def __call__(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        return F.embedding(seen, values["weight"])

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        return AffineMap(values["weight"].T, None)
