"""The subspace that learned deltas span: a new one is a point in it, and only its coordinates are trained."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from continual.backbones.sites import Place
from continual.deltas.edit import Edit
from continual.deltas.method import MethodSettings, method_settings
from continual.deltas.protocols import Canonicalizable, Form, HasFinalForm, HasSharedValues, IdentityAtInit, Values
from tasks import Method

MEAN, BASIS = "mean.", "basis."


@dataclass(frozen=True)
class SubspaceCoordinates:
    """What `inner` makes of v = mean + Σ_k c_k basis_k, for each of its values v; the coordinates c [K] are common.

    Mean and basis are held as they are while c is trained; what is kept is v. Fresh, the basis is random: the deltas
    that are to span it replace it.
    """

    inner: Form
    dimension: int

    @property
    def identity(self) -> IdentityAtInit:
        return self.inner.identity

    def init_shared(self, places: Sequence[Place], generator: torch.Generator) -> dict[str, Tensor]:
        return {"coordinates": torch.zeros(self.dimension)}

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        mean = self.inner.init_values(place, d_read, generator)
        k, draw = self.dimension, generator
        basis = {name: torch.randn(k, *v.shape, generator=draw) / math.sqrt(v.numel()) for name, v in mean.items()}
        return _named(MEAN, mean) | _named(BASIS, basis)

    def is_frozen(self, name: str) -> bool:
        return name.startswith((MEAN, BASIS))

    def __call__(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        return self.inner(self.finalize(values, place), seen, place)

    def finalize(self, values: Values, place: Place) -> dict[str, Tensor]:
        if "coordinates" not in values:
            return dict(values)
        means = {name.removeprefix(MEAN): value for name, value in values.items() if name.startswith(MEAN)}
        return {
            name: mean + torch.tensordot(values["coordinates"], values[BASIS + name], dims=1)
            for name, mean in means.items()
        }

    def canonical_form(self, values: Values, place: Place, *, scale: float) -> tuple[Form, dict[str, Tensor]] | None:
        """Of values as they are kept, what `inner` has in common with others."""
        inner = self.inner if "coordinates" not in values else None
        return inner.canonical_form(values, place, scale=scale) if isinstance(inner, Canonicalizable) else None


def _named(prefix: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in values.items()}


class Subspace(MethodSettings):
    """v = v̄ + U c: the values of method `of` in the subspace of those that were learned, with c [dimension] trained.

    v̄ is the mean of the learned deltas of the very same settings, U their first principal directions. Qin et al.
    (2021), "Exploring Universal Intrinsic Task Subspace via Prompt Tuning", arXiv:2110.07867, whose auto-encoder is
    linear here. In a stream: `{name: subspace, of: {name: lora, rank: 8}, dimension: 16}`.

    >>> Subspace.model_validate({"of": "lora", "dimension": 4}).edits()[0].site
    'projections'
    """

    of: Method = Method(name="lora")
    dimension: int = Field(default=16, ge=1, le=4096)

    @model_validator(mode="after")
    def _spannable(self) -> Self:
        if any(isinstance(edit.form, HasSharedValues | HasFinalForm) for edit in method_settings(self.of).edits()):
            raise ValueError(
                f"of: {self.of.name} keeps other values than it trains; use a method such as lora or adapter"
            )
        return self

    @property
    def base_settings(self) -> MethodSettings:
        """The settings of the deltas that span the subspace."""
        return method_settings(self.of)

    def edits(self) -> tuple[Edit, ...]:
        inner = method_settings(self.of).edits()
        return tuple(replace(edit, form=SubspaceCoordinates(edit.form, self.dimension)) for edit in inner)

    def with_basis(self, fresh: Values, learned: Sequence[Values]) -> dict[str, Tensor]:
        """`fresh` values of this method, with the mean and the principal directions of learned ones of method `of`.

        Directions beyond one less than the learned deltas are zero, so that their coordinates change nothing.
        """
        names = list(learned[0])
        rows = torch.stack([torch.cat([values[name].flatten() for name in names]) for values in learned])
        mean = rows.mean(dim=0)
        _, sizes, directions = torch.linalg.svd(rows - mean, full_matrices=False)
        scaled = (directions * sizes.unsqueeze(1) / len(rows) ** 0.5)[: min(self.dimension, len(rows) - 1)]
        basis = torch.zeros(self.dimension, len(mean))
        basis[: len(scaled)] = scaled
        return {**fresh, **_placed(MEAN, names, learned[0], mean), **_placed(BASIS, names, learned[0], basis)}


def _placed(prefix: str, names: Sequence[str], like: Values, numbers: Tensor) -> dict[str, Tensor]:
    """Numbers [..., n], one after the other for the values named, as values of their shapes."""
    parts = torch.split(numbers, [like[name].numel() for name in names], dim=-1)
    shaped = (part.reshape(*numbers.shape[:-1], *like[name].shape) for name, part in zip(names, parts, strict=True))
    keys = (name.rpartition("/") for name in names)
    return {f"{place}/{prefix}{own}": part.clone() for (place, _, own), part in zip(keys, shaped, strict=True)}
