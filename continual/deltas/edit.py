"""One change at one site: what function, of what, put together how.

After He et al. (2022), "Towards a Unified View of Parameter-Efficient Transfer Learning" (arXiv:2110.04366): a method
is the function that changes a hidden state, what it reads, which state it modifies, and how the two are composed.
With x what enters a site and y what leaves it,

    y  ←  compose(y, form(values, x or y))
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from continual.deltas.affine import AffineMap
from continual.errors import MethodError
from continual.sites import Place

IdentityAtInit = Literal["exact", "near", "none"]  # how nearly fresh values leave a state as it was
Values = Mapping[str, Tensor]  # the learned tensors of one edit at one place; whole numbers are never trained


class Reads(Enum):
    """What an edit's function is given: what enters the site (parallel), or what leaves it (sequential)."""

    INPUT = "input"
    OUTPUT = "output"


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


class Compose(Protocol):
    def __call__(self, output: Tensor, change: Tensor) -> Tensor: ...


@runtime_checkable
class InPlaceComposition(Protocol):
    """A way to compose that can put what comes out in the place of the output."""

    def apply_(self, output: Tensor, change: Tensor) -> None: ...


@runtime_checkable
class MergeableComposition(Protocol):
    """A way to compose that makes one affine map of two, where there is one."""

    def merged(self, own: AffineMap, change: AffineMap) -> AffineMap | None:
        """What composes the module's own map with the change; None where that is not affine."""
        ...


def to_device_of(values: Values, seen: Tensor) -> Values:
    """The values on the device of what is seen: that of their module, where the layers are on several."""
    if all(value.device == seen.device for value in values.values()):
        return values
    return {name: value.to(seen.device) for name, value in values.items()}


@dataclass(frozen=True)
class Add:
    """output + scale · change, of the output's type: bfloat16 stays what it is beside values in float32."""

    scale: float = 1  # a whole one, so that whole numbers stay whole

    def __call__(self, output: Tensor, change: Tensor) -> Tensor:
        return output + self._scaled(change).to(output.dtype)

    def apply_(self, output: Tensor, change: Tensor) -> None:
        """The same in the place of the output."""
        output.add_(self._scaled(change))

    def _scaled(self, change: Tensor) -> Tensor:
        return change if self.scale == 1 else self.scale * change

    def merged(self, own: AffineMap, change: AffineMap) -> AffineMap | None:
        return own.add(change, scale=self.scale)


@dataclass(frozen=True)
class Multiply:
    """output ⊙ change"""

    def __call__(self, output: Tensor, change: Tensor) -> Tensor:
        return output * change.to(output.dtype)

    def apply_(self, output: Tensor, change: Tensor) -> None:
        """The same in the place of the output."""
        output.mul_(change)

    def merged(self, own: AffineMap, change: AffineMap) -> AffineMap | None:
        return own.scale_output(change.bias) if change.weight is None and change.bias is not None else None


@dataclass(frozen=True)
class Concatenate:
    """[change; output]: the change's P rows [..., P, D] stand before the output's T rows [..., T, D]."""

    def __call__(self, output: Tensor, change: Tensor) -> Tensor:
        rows = change.to(output.dtype).expand(*output.shape[:-2], *change.shape[-2:])
        return torch.cat((rows, output), dim=-2)


@cache
def implements(kind: type, protocol: type) -> bool:
    """Whether objects of a class have the methods of a protocol, which takes long to find out."""
    return issubclass(kind, protocol)


class PlaceFilter(Protocol):
    """Which of the places of a site an edit is put at."""

    def __call__(self, places: Sequence[Place]) -> Sequence[Place]: ...


@dataclass(frozen=True)
class LayerFilter:
    """The places of some layers: numbers from 0 at the bottom, or from −1 at the top of each stack."""

    numbers: tuple[int, ...]

    def __call__(self, places: Sequence[Place]) -> Sequence[Place]:
        layers = max(place.layers for place in places)
        if outside := [number for number in self.numbers if not -layers <= number < layers]:
            raise MethodError(
                f"layers {outside} are not there: the backbone has {layers}, numbered 0 to {layers - 1} from below "
                f"or -1 to {-layers} from above"
            )
        return [place for place in places if place.layer is not None and self._among(place.layer, place.layers)]

    def _among(self, layer: int, layers: int) -> bool:
        return layer in self.numbers or layer - layers in self.numbers


@dataclass(frozen=True)
class RandomFilter:
    """A share of the places, at least one, drawn by `seed`: the same on every machine."""

    share: float
    seed: int

    def __call__(self, places: Sequence[Place]) -> Sequence[Place]:
        def rank(place: Place) -> str:
            return hashlib.sha256(f"{self.seed}/{place.name}".encode()).hexdigest()

        drawn = {place.name for place in sorted(places, key=rank)[: max(1, round(self.share * len(places)))]}
        return [place for place in places if place.name in drawn]


@dataclass(frozen=True)
class Edit:
    """One change at every place of a site, or of a group of sites.

    choice: which of the places; all where it is None · stages: when it is trained, all else fixed; a form that
    finishes does so after the first of them · added_tokens: how many tokens longer it makes an input, as far as
    positions go · optional: whether a family that lacks the site does without the edit.
    """

    site: str
    form: Form
    reads: Reads
    compose: Compose
    where: PlaceFilter | None = None
    stages: tuple[int, ...] = (0,)
    added_tokens: int = 0
    optional: bool = False
