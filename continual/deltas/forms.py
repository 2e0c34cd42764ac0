"""Forms that several methods use: low rank, bottleneck, vector, dense.

Shapes: D dimensions read (`d_read`), E changed (`place.d_out`), R rank, M bottleneck size, V rows of an embedding,
B rows of a batch, T tokens.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
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

MIN_SHARED_SIZE = 8  # least rank or bottleneck size in a stack of deltas: a smaller one is no faster


def init_low_rank(rank: int, d_read: int, d_out: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw A [R, D] uniformly in ±1/√D, as a linear layer's weight is, and set B [E, R] to zero."""
    bound = 1 / math.sqrt(d_read)
    a = torch.empty(rank, d_read).uniform_(-bound, bound, generator=generator)
    return {"A": a, "B": torch.zeros(d_out, rank)}


def truncated_normal(shape: tuple[int, ...], scale: float, generator: torch.Generator) -> Tensor:
    """Draw a tensor of this shape from a normal of deviation `scale`, truncated at two deviations."""
    return torch.nn.init.trunc_normal_(torch.empty(shape), std=scale, a=-2 * scale, b=2 * scale, generator=generator)


def round_up_size(size: int) -> int:
    """Return the next power of two, at least 8: the size in which deltas of similar sizes are stacked."""
    return max(MIN_SHARED_SIZE, 1 << (size - 1).bit_length())


Scaling = Literal["standard", "rank_stabilized"]


def scale_divisor(rank: int, scaling: Scaling) -> float:
    """Return what alpha is divided by: the rank, or its square root in a rank-stabilised LoRA.

    Kalajdzievski (2023), "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", arXiv:2312.03732: with alpha
    divided by √R instead of R, neither outputs nor gradients vanish as the rank grows.

    >>> scale_divisor(16, "standard"), scale_divisor(16, "rank_stabilized")
    (16, 4.0)
    """
    return math.sqrt(rank) if scaling == "rank_stabilized" else rank


@dataclass(frozen=True)
class LowRank:
    """x Aᵀ Bᵀ with A [R, D] and B [E, R]; starts at zero, since B does.

    Hu et al. (2022), "LoRA", arXiv:2106.09685.
    """

    identity: ClassVar[IdentityAtInit] = "exact"

    rank: int

    def supports(self, place: Place) -> bool:
        """Accept places that read and change hidden states."""
        return place.is_hidden_state

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return A [R, D], drawn, and B [E, R], zero."""
        return init_low_rank(self.rank, d_read, place.d_out, generator)

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [..., E] of `inputs` [..., D]."""
        return F.linear(F.linear(inputs, values["A"]), values["B"])

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        """Return the weight B A [E, D]."""
        return AffineMap(values["B"] @ values["A"], None)

    def canonical_form(self, values: Values, place: Place, *, scale: float) -> tuple["LowRank", dict[str, Tensor]]:
        """Return A [R', D] and scale · B [E, R'], R' = `round_up_size(R)`, padded with zeros."""
        rank = round_up_size(self.rank)
        missing = rank - self.rank
        return LowRank(rank), {
            "A": F.pad(values["A"], (0, 0, 0, missing)),
            "B": F.pad(scale * values["B"], (0, missing)),
        }

    def batched_call(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [B, T, E] of `inputs` [B, T, D] by A [B, R, D] and B [B, E, R]."""
        return torch.bmm(torch.bmm(inputs, values["A"].mT), values["B"].mT)

    def weighted_average(self, values: Sequence[Values], weights: Sequence[float]) -> dict[str, Tensor]:
        """Return the best approximation of Σ_k w_k B_k A_k of rank R in the Frobenius norm.

        Eckart and Young (1936). The SVD is taken of the small core between the QR factors of [w_k B_k]_k and [A_k]_k.

        Args:
            values: A [R_k, D] and B [E, R_k] of each set; ranks may differ.
            weights: One per set.

        Returns:
            A [R, D] and B [E, R], each with the square roots of the singular values; padded with zeros where Σ R_k < R.
        """
        wide = torch.cat([weight * part["B"].float() for part, weight in zip(values, weights, strict=True)], dim=1)
        tall = torch.cat([part["A"].float() for part in values])
        (q, upper), (p, lower) = torch.linalg.qr(wide), torch.linalg.qr(tall.T)
        left_vectors, singular_values, right_vectors = torch.linalg.svd(upper @ lower.T)
        root = singular_values[: self.rank].sqrt()
        a, b = root.unsqueeze(1) * (right_vectors[: self.rank] @ p.T), (q @ left_vectors[:, : self.rank]) * root
        missing = self.rank - len(root)
        return {"A": F.pad(a, (0, 0, 0, missing)), "B": F.pad(b, (0, missing))}


@dataclass(frozen=True)
class Bottleneck:
    """f(x W_downᵀ + b_down) W_upᵀ + b_up with W_down [M, D] and W_up [E, M].

    2MD + D + M parameters where E = D. Houlsby et al. (2019), "Parameter-Efficient Transfer Learning for NLP"
    (arXiv:1902.00751). Biases start at zero.

    Attributes:
        size: M.
        initial_scale: Deviation of the normal, truncated at two deviations, from which the weights are drawn: nearly,
            not exactly, no change. Where it is None they start as LoRA's do, W_up at zero.
        activation: f.
    """

    size: int
    initial_scale: float | None
    activation: Activation = "gelu"

    @property
    def identity(self) -> IdentityAtInit:
        """Exact where W_up starts at zero, else near."""
        return "exact" if self.initial_scale is None else "near"

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return down [M, D] and up [E, M], drawn, and down_bias [M] and up_bias [E], zero."""
        biases = {"down_bias": torch.zeros(self.size), "up_bias": torch.zeros(place.d_out)}
        if self.initial_scale is None:
            start = init_low_rank(self.size, d_read, place.d_out, generator)
            return {"down": start["A"], "up": start["B"], **biases}
        down = truncated_normal((self.size, d_read), self.initial_scale, generator)
        return {"down": down, "up": truncated_normal((place.d_out, self.size), self.initial_scale, generator), **biases}

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [..., E] of `inputs` [..., D]."""
        hidden = ACTIVATIONS[self.activation](F.linear(inputs, values["down"], values["down_bias"]))
        return F.linear(hidden, values["up"], values["up_bias"])

    def canonical_form(self, values: Values, place: Place, *, scale: float) -> tuple["Bottleneck", dict[str, Tensor]]:
        """Return the values in the size M' = `round_up_size(M)`, padded with zero units; `scale` goes into up.

        Returns:
            The form, and down [M', D], down_bias [M'], up [E, M'] and up_bias [E].
        """
        size = round_up_size(self.size)
        missing = size - self.size
        return Bottleneck(size, None, self.activation), {
            "down": F.pad(values["down"], (0, 0, 0, missing)),
            "down_bias": F.pad(values["down_bias"], (0, missing)),
            "up": F.pad(scale * values["up"], (0, missing)),
            "up_bias": scale * values["up_bias"],
        }

    def batched_call(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [B, T, E] of `inputs` [B, T, D] by values [B, …]."""
        hidden = torch.baddbmm(values["down_bias"].unsqueeze(1), inputs, values["down"].mT)
        return torch.baddbmm(values["up_bias"].unsqueeze(1), ACTIVATIONS[self.activation](hidden), values["up"].mT)

    def weighted_average(self, values: Sequence[Values], weights: Sequence[float]) -> dict[str, Tensor]:
        """Return the M units that change most of all sets' units, up-weights multiplied by the set's weight.

        All units side by side are exactly the weighted sum; those with the largest ‖w_down‖ ‖w_up‖ are selected.

        Args:
            values: down [M_k, D], up [E, M_k], down_bias [M_k] and up_bias [E] of each set; sizes may differ.
            weights: One per set.

        Returns:
            Values of this form's shapes; fewer units where there are fewer than M.
        """
        pairs = list(zip(values, weights, strict=True))
        down, bias = (torch.cat([part[name].float() for part, _ in pairs]) for name in ("down", "down_bias"))
        up = torch.cat([weight * part["up"].float() for part, weight in pairs], dim=1)
        size_of_change = down.norm(dim=1) * up.norm(dim=0)
        units = size_of_change.argsort(descending=True, stable=True)[: self.size].sort().values
        up_bias = torch.stack([weight * part["up_bias"].float() for part, weight in pairs]).sum(dim=0)
        return {"down": down[units], "up": up[:, units], "down_bias": bias[units], "up_bias": up_bias}


@dataclass(frozen=True)
class Vector:
    """A vector [E] that does not depend on the hidden state; every entry starts at `initial`.

    The edit starts as the identity where `initial` is neutral: 0 for `Add`, 1 for `Multiply`.
    """

    identity: ClassVar[IdentityAtInit] = "exact"

    initial: float

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the vector [E]."""
        return {"vector": torch.full((place.d_out,), self.initial)}

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Return the vector [E]; `inputs` [..., D] is not read."""
        return values["vector"]

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        """Return the bias [E]."""
        return AffineMap(None, values["vector"])

    def canonical_form(self, values: Values, place: Place, *, scale: float) -> tuple["Vector", dict[str, Tensor]]:
        """Return scale · vector [E]."""
        return Vector(0.0), {"vector": scale * values["vector"]}

    def batched_call(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Return each row's vector [B, 1, E], the same for every token."""
        return values["vector"].unsqueeze(1)


@dataclass(frozen=True)
class DenseDelta:
    """x ΔWᵀ with ΔW [E, D], starting at zero: an unrestricted change of a weight."""

    identity: ClassVar[IdentityAtInit] = "exact"

    def supports(self, place: Place) -> bool:
        """Accept linear layers whose weight can be read."""
        return place.is_linear

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return ΔW [E, D], zero."""
        return {"weight": torch.zeros(place.weight.shape)}

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [..., E] of `inputs` [..., D]."""
        return F.linear(inputs, values["weight"])

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        """Return the weight ΔW [E, D]."""
        return AffineMap(values["weight"], None)


@dataclass(frozen=True)
class EmbeddingDelta:
    """A change ΔW [V, E] of a table, starting at zero: of word vectors, or of output embeddings.

    Word vectors of row indices i change by s ΔW[i], with the factor s by which some models scale them; scores of states
    x by x ΔWᵀ.

    Attributes:
        scaled: Whether s is the model's; otherwise it is one.
    """

    identity: ClassVar[IdentityAtInit] = "exact"

    scaled: bool = True

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return ΔW [V, E], zero."""
        return {"weight": torch.zeros(place.weight.shape)}

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [..., E] of row indices [...], or that [..., V] of states [..., E]."""
        if not isinstance(place.input_module, nn.Embedding):
            return F.linear(inputs, values["weight"])
        change = F.embedding(inputs, values["weight"])
        scale = getattr(place.input_module, "embed_scale", None) if self.scaled else None
        return change if scale is None else scale * change

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        """Return the weight ΔWᵀ [E, V] of one-hot rows, or ΔW [V, E] of states."""
        is_lookup = isinstance(place.input_module, nn.Embedding)
        return AffineMap(values["weight"].T if is_lookup else values["weight"], None)
