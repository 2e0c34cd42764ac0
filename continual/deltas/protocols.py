"""Forms: the function that an edit applies, and the optional capabilities of such a function.

The form is one of the four axes of He et al. (2022), "Towards a Unified View of Parameter-Efficient Transfer Learning"
(arXiv:2110.04366). `continual.deltas.edit` combines the four: *site* is the representation that is modified
(`continual.backbones.sites`), *form* the function that computes the change, *reads* that function's input, *compose*
the operation that joins change and output (`continual.deltas.compose`).

Every form satisfies `Form`. The other protocols are optional capabilities; a form has one by defining its method:

    PlaceRestricted   supports           reject places where the form has no meaning
    HasSharedValues   init_shared        have values in common to all places of an edit
    HasFrozenValues   is_frozen          exclude values from training
    HasValueShapes    value_shapes       give the shapes of fresh values that are costly to compute
    Regularized       penalty            add a term to the loss
    Budgeted          prune              set the least important values of all places to zero during training
    HasFinalForm      finalize           replace the trained values by equivalent ones, which are stored
    Averageable       weighted_average   merge several sets of values into one
    Canonicalizable   canonical_form     rewrite values in a shape that more deltas have in common
    BatchedForm       batched_call       change many rows at once, each by its own values
    Mergeable         as_affine_map      give the change as a weight and a bias of a plain model

Forms that several methods use are in `continual.deltas.forms`, those of one method beside its settings in
`continual.deltas.methods`.

Shapes: B rows of a batch, T tokens, d_read and d_out the last dimensions of a form's input and of its change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from continual.backbones.sites import Place

IdentityAtInit = Literal["exact", "near", "none"]  # whether fresh values leave a state as it was
Values = Mapping[str, Tensor]  # the learned tensors of one edit at one place; integer tensors are never trained


class Form(Protocol):
    """A pure function of one row's hidden states and learned values.

    Purity allows a batch of rows with different values.
    """

    @property
    def identity(self) -> IdentityAtInit:
        """Closeness of the edit to the identity before anything is learned."""
        ...

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return fresh values for a place, by name; their shapes are the form's.

        Args:
            place: Where the edit is put; the change has `place.d_out` dimensions.
            d_read: The last dimension of the form's input.
            generator: Draws the random values.
        """
        ...

    def __call__(self, values: Values, inputs: Tensor, place: Place, /) -> Tensor:
        """Compute the change [..., d_out] of `inputs` [..., d_read] by `values`."""
        ...


@runtime_checkable
class PlaceRestricted(Protocol):
    """A form that has a meaning at some places only."""

    def supports(self, place: Place) -> bool:
        """Return whether the form can be put at a place."""
        ...


@runtime_checkable
class HasSharedValues(Protocol):
    """A form some of whose values are common to all the places of an edit."""

    def init_shared(self, places: Sequence[Place], generator: torch.Generator) -> dict[str, Tensor]:
        """Return the fresh common values, by name; their shapes are the form's.

        `__call__` gets them among the values of each place.
        """
        ...


@runtime_checkable
class HasFrozenValues(Protocol):
    """A form some of whose values are constant while the others are trained."""

    def is_frozen(self, name: str) -> bool:
        """Return whether the value of this name is excluded from training."""
        ...


@runtime_checkable
class HasValueShapes(Protocol):
    """A form that knows the shapes of its fresh values without computing them, which takes long."""

    def value_shapes(self, place: Place, d_read: int) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the floating-point values that `init_values` returns, by name and in its order."""
        ...


@runtime_checkable
class Regularized(Protocol):
    """A form that adds a term to the loss."""

    def penalty(self, values: Values) -> Tensor:
        """Compute the scalar that the values of one place add to the loss, in nats."""
        ...


@runtime_checkable
class Budgeted(Protocol):
    """A form by which values of all places compete for a budget during training."""

    @property
    def has_budget(self) -> bool:
        """Whether there is one."""
        ...

    def init_statistics(self, values: Values) -> dict[str, Tensor]:
        """Return the statistics of one place before training, by name, on the devices of its values."""
        ...

    def observe(self, values: Values, statistics: Values) -> None:
        """Update the statistics of one place in place, before a step; the values have their gradients.

        Args:
            values: The trained values, of the form's shapes.
            statistics: Of the shapes that `init_statistics` gives them.
        """
        ...

    def prune(self, places: Sequence[tuple[Values, Values]], *, step: int, steps: int) -> None:
        """Set the least important values of all places to zero in place, behind a step.

        Args:
            places: Values and statistics of each place, of the shapes of `observe`.
            step: Steps taken so far.
            steps: Steps in all.
        """
        ...


@runtime_checkable
class HasFinalForm(Protocol):
    """A form whose trained values are replaced by equivalent ones, which are stored."""

    def finalize(self, values: Values, place: Place) -> dict[str, Tensor]:
        """Return the values to store for a place, common ones included; final values are returned unchanged.

        The final values need not have the names and shapes of the trained ones; `__call__` accepts both.
        """
        ...


@runtime_checkable
class Averageable(Protocol):
    """A form that can add up the changes of several sets of values, also of different sizes."""

    def weighted_average(self, values: Sequence[Values], weights: Sequence[float]) -> dict[str, Tensor]:
        """Return values of the form's own size whose change best approximates Σ_k weights_k · change_k.

        Args:
            values: Sets of values by name, of the form's shapes but for their sizes, which may differ.
            weights: One per set.

        Returns:
            Values by name, of the form's shapes, or of a smaller size where the sets together have less.
        """
        ...


@runtime_checkable
class Canonicalizable(Protocol):
    """A form that can be rewritten as another one, or in another size, that more deltas have in common."""

    def canonical_form(self, values: Values, place: Place, *, scale: float) -> "tuple[Form, dict[str, Tensor]] | None":
        """Return a form and values whose change is `scale` times that of `values`; None for no rewriting."""
        ...


@runtime_checkable
class BatchedForm(Protocol):
    """A form that changes many rows at once, each by its own values, instead of delta by delta."""

    def batched_call(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [B, T, d_out] of `inputs` [B, T, d_read], row by row.

        Args:
            values: By name, [B, …]: one set of values per row.
            inputs: [B, T, d_read].
            place: Where the edit is put.

        Returns:
            [B, T, d_out], or [B, 1, d_out] where the change is the same for every token.
        """
        ...


@dataclass(frozen=True)
class AffineMap:
    """The map x ↦ x Wᵀ + b, or x ↦ γ ⊙ x + b: the part of a module that a change can be merged into.

    An embedding is the same map on one-hot rows: W is its table transposed.

    Attributes:
        weight: W [E, D], or γ [E]; None stands for zero.
        bias: b [E]; None stands for zero.
    """

    weight: Tensor | None
    bias: Tensor | None

    def add(self, other: "AffineMap", *, scale: float = 1.0) -> "AffineMap":
        """Return x ↦ self(x) + scale · other(x); both have weights of one shape."""
        return AffineMap(_sum(self.weight, other.weight, scale), _sum(self.bias, other.bias, scale))

    def scale_output(self, gain: Tensor) -> "AffineMap":
        """Return x ↦ gain ⊙ self(x), with the gain [E]."""
        weight = None if self.weight is None else gain.reshape(-1, *[1] * (self.weight.dim() - 1)) * self.weight
        return AffineMap(weight, None if self.bias is None else gain * self.bias)


def _sum(first: Tensor | None, second: Tensor | None, scale: float) -> Tensor | None:
    """Return first + scale · second, where None is zero."""
    if second is None:
        return first
    return scale * second if first is None else first + scale * second


@runtime_checkable
class Mergeable(Protocol):
    """A form that is affine in its input, so that weights with the same effect can be saved."""

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        """Return the form as a map, whose weight has the shape of the place's own (an embedding's transposed)."""
        ...


@cache
def implements(cls: type, protocol: type) -> bool:
    """Return whether a class has the methods of a runtime-checkable protocol; cached, since slow."""
    return issubclass(cls, protocol)


def to_device_of(values: Values, inputs: Tensor) -> Values:
    """Return the values on the device of `inputs` [..., d_read]: layers may be on several devices."""
    if all(value.device == inputs.device for value in values.values()):
        return values
    return {name: value.to(inputs.device) for name, value in values.items()}
