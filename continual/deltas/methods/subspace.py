"""Subspace tuning: train the coordinates of a delta in the subspace spanned by learned deltas."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from continual.backbones.sites import Place
from continual.deltas.edit import Edit
from continual.deltas.method import MethodSettings, method_settings, upgrade_part
from continual.deltas.protocols import Canonicalizable, Form, HasFinalForm, HasSharedValues, IdentityAtInit, Values
from tasks import Method

MEAN, BASIS = "mean.", "basis."


@dataclass(frozen=True)
class SubspaceCoordinates:
    """Another form applied to values v = mean + Σ_k c_k basis_k with common coordinates c [K].

    Mean [...] and basis [K, ...] are frozen while c is trained; the final values are v [...]. A fresh basis is random,
    until `Subspace.with_basis` replaces it by the directions of learned deltas.

    Attributes:
        inner: The form.
        dimension: K.
    """

    inner: Form
    dimension: int

    @property
    def identity(self) -> IdentityAtInit:
        """The inner form's."""
        return self.inner.identity

    def init_shared(self, places: Sequence[Place], generator: torch.Generator) -> dict[str, Tensor]:
        """Return the coordinates c [K], zero."""
        return {"coordinates": torch.zeros(self.dimension)}

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return mean [...] and basis [K, ...] of each of the inner form's values, the means as it draws them."""
        mean = self.inner.init_values(place, d_read, generator)
        basis = {
            name: torch.randn(self.dimension, *value.shape, generator=generator) / math.sqrt(value.numel())
            for name, value in mean.items()
        }
        return _prefixed(MEAN, mean) | _prefixed(BASIS, basis)

    def is_frozen(self, name: str) -> bool:
        """Freeze means and bases."""
        return name.startswith((MEAN, BASIS))

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the inner form's change [..., E] of `inputs` [..., D]."""
        return self.inner(self.finalize(values, place), inputs, place)

    def finalize(self, values: Values, place: Place) -> dict[str, Tensor]:
        """Compute the inner form's values v [...]."""
        if "coordinates" not in values:
            return dict(values)
        means = {name.removeprefix(MEAN): value for name, value in values.items() if name.startswith(MEAN)}
        return {
            name: mean + torch.tensordot(values["coordinates"], values[BASIS + name], dims=1)
            for name, mean in means.items()
        }

    def canonical_form(self, values: Values, place: Place, *, scale: float) -> tuple[Form, dict[str, Tensor]] | None:
        """Return the inner form's canonical form of final values; None while the coordinates are trained.

        Returns:
            A form and values of the shapes that `inner.canonical_form` gives.
        """
        inner = self.inner if "coordinates" not in values else None
        return inner.canonical_form(values, place, scale=scale) if isinstance(inner, Canonicalizable) else None


def _prefixed(prefix: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in values.items()}


class Subspace(MethodSettings):
    """Subspace tuning: values v = v̄ + U c of another method, with trained c [dimension].

    v̄ is the mean of the learned deltas with the same settings, U their first principal directions. Qin et al. (2021),
    "Exploring Universal Intrinsic Task Subspace via Prompt Tuning", arXiv:2110.07867, whose auto-encoder is linear
    here. In a stream: `{name: subspace, of: {name: lora, rank: 8}, dimension: 16}`.

    Attributes:
        of: The other method, one whose final values are the trained ones.
        dimension: Number of coordinates.

    >>> Subspace.model_validate({"of": "lora", "dimension": 4}).edits()[0].site
    'projections'
    """

    of: Method = Method(name="lora")
    dimension: int = Field(default=16, ge=1, le=4096)

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        if any(isinstance(edit.form, HasSharedValues | HasFinalForm) for edit in method_settings(self.of).edits()):
            raise ValueError(
                f"of: {self.of.name} keeps other values than it trains; use a method such as lora or adapter"
            )
        return self

    @classmethod
    def upgrade(cls, settings: Mapping[str, Any], *, generates: bool) -> dict[str, Any]:
        """Upgrade the settings of the other method."""
        return {**settings, "of": upgrade_part(settings["of"], generates=generates)}

    @property
    def base_settings(self) -> MethodSettings:
        """Settings of the deltas that span the subspace."""
        return method_settings(self.of)

    def edits(self) -> tuple[Edit, ...]:
        """Return the other method's edits, in coordinates of the subspace."""
        inner = method_settings(self.of).edits()
        return tuple(replace(edit, form=SubspaceCoordinates(edit.form, self.dimension)) for edit in inner)

    def with_basis(self, fresh: Values, learned: Sequence[Values]) -> dict[str, Tensor]:
        """Return fresh values with mean and basis replaced by those of learned values, from a PCA.

        N learned deltas have N − 1 principal directions; further ones are zero, so their coordinates have no effect.

        Args:
            fresh: Values of this method by key: means [...], bases [dimension, ...] and coordinates [dimension].
            learned: values [...] of deltas of the other method by key, at least one set.

        Returns:
            Values of this method by key, of the shapes of `fresh`. A direction has the length of the learned values'
            standard deviation along it.
        """
        keys = list(learned[0])
        rows = torch.stack([torch.cat([values[key].flatten() for key in keys]) for values in learned])
        mean = rows.mean(dim=0)
        _, sizes, directions = torch.linalg.svd(rows - mean, full_matrices=False)
        scaled = (directions * sizes.unsqueeze(1) / len(rows) ** 0.5)[: min(self.dimension, len(rows) - 1)]
        basis = torch.zeros(self.dimension, len(mean))
        basis[: len(scaled)] = scaled
        return {**fresh, **_unflatten(MEAN, learned[0], mean), **_unflatten(BASIS, learned[0], basis)}


def _unflatten(prefix: str, like: Values, flat: Tensor) -> dict[str, Tensor]:
    """Split [..., n] into values of the shapes of `like`, [..., *shape], with `prefix` before the names."""
    parts = torch.split(flat, [value.numel() for value in like.values()], dim=-1)
    values = {}
    for (key, value), part in zip(like.items(), parts, strict=True):
        place, _, name = key.rpartition("/")
        values[f"{place}/{prefix}{name}"] = part.reshape(*flat.shape[:-1], *value.shape).clone()
    return values
