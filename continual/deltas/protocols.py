"""Affine maps: what a module computes whose weight and bias a change can become part of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from continual.backbones.sites import Place

IdentityAtInit = Literal["exact", "near", "none"]  # how nearly fresh values leave a state as it was
Values = Mapping[str, Tensor]  # the learned tensors of one edit at one place; whole numbers are never trained


@dataclass(frozen=True)
class AffineMap:
    """x ↦ x Wᵀ + b with W [E, D], or γ ⊙ x + b with γ [E]; None stands for zero.

    An embedding is the same of rows that are all zero but for a one: W is its table transposed.
    """

    weight: Tensor | None
    bias: Tensor | None

    def add(self, other: "AffineMap", *, scale: float = 1.0) -> "AffineMap":
        """x ↦ self(x) + scale · other(x)"""
        return AffineMap(_sum(self.weight, other.weight, scale), _sum(self.bias, other.bias, scale))

    def scale_output(self, gain: Tensor) -> "AffineMap":
        """x ↦ gain ⊙ self(x), with the gain [E]."""
        weight = None if self.weight is None else gain.reshape(-1, *[1] * (self.weight.dim() - 1)) * self.weight
        return AffineMap(weight, None if self.bias is None else gain * self.bias)


def _sum(own: Tensor | None, other: Tensor | None, scale: float) -> Tensor | None:
    if other is None:
        return own
    return scale * other if own is None else own + scale * other


class Form(Protocol):
    """A pure function of one row's hidden states and learned values: rows with different values can be mixed."""

    @property
    def identity(self) -> IdentityAtInit:
        """How nearly an edit of this form leaves the state as it was, before anything is learned."""
        ...

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Fresh values for a place, of whose hidden states `d_read` dimensions are read."""
        ...

    def __call__(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        """The change [..., d_out] that `values` make of what is seen, [..., d_read]."""
        ...


@runtime_checkable
class PlaceRestricted(Protocol):
    """A form that is not for every place."""

    def supports(self, place: Place) -> bool:
        """Whether it is for this one."""
        ...


@runtime_checkable
class HasSharedValues(Protocol):
    """A form some of whose values are common to all the places of an edit."""

    def init_shared(self, places: Sequence[Place], generator: torch.Generator) -> dict[str, Tensor]:
        """The fresh common values; `__call__` finds them among the place's own."""
        ...


@runtime_checkable
class HasFinalForm(Protocol):
    """A form whose trained values are replaced by others, that mean the same and are what is kept."""

    def finalize(self, values: Values, place: Place) -> dict[str, Tensor]:
        """What is kept of a place's values, the common ones included; of values that were finished before, the same."""
        ...


@runtime_checkable
class HasFrozenValues(Protocol):
    """A form some of whose values stay as they are while the others are trained."""

    def is_frozen(self, name: str) -> bool:
        """Whether the value of this name stays."""
        ...


@runtime_checkable
class Regularized(Protocol):
    """A form that adds a term to the loss."""

    def penalty(self, values: Values) -> Tensor:
        """What the values of one place add to the loss, in nats."""
        ...


@runtime_checkable
class Averageable(Protocol):
    """A form that can add up what several sets of values change, whatever their sizes."""

    def weighted_average(self, values: Sequence[Values], weights: Sequence[float]) -> dict[str, Tensor]:
        """Values of the form's own size whose change is, as nearly as they can, Σ w times that of each set."""
        ...


@runtime_checkable
class Canonicalizable(Protocol):
    """A form that can be written in another way, or in another size, that more deltas have in common."""

    def canonical_form(self, values: Values, place: Place, *, scale: float) -> "tuple[Form, dict[str, Tensor]] | None":
        """A form and values whose change is `scale` times that of these values; None where they stay as they are."""
        ...


@runtime_checkable
class BatchedForm(Protocol):
    """A form that changes many rows at once, each by its own values; other forms are asked delta by delta."""

    def batched_call(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        """The change of each of B rows, seen [B, T, d_read], by values [B, …] of its own."""
        ...


@runtime_checkable
class Mergeable(Protocol):
    """A form that is affine in what it is given, so that weights which do the same can be saved."""

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        """The map: its weight, of the shape that the place's own has (of an embedding, transposed), and its bias."""
        ...


def to_device_of(values: Values, seen: Tensor) -> Values:
    """The values on the device of what is seen: that of their module, where the layers are on several."""
    if all(value.device == seen.device for value in values.values()):
        return values
    return {name: value.to(seen.device) for name, value in values.items()}


@cache
def implements(kind: type, protocol: type) -> bool:
    """Whether objects of a class have the methods of a protocol, which takes long to find out."""
    return issubclass(kind, protocol)
