"""The layout of a delta: its edits at their places, and its values grouped into pools of equal shape.

Pools serve two purposes: an optimiser takes one step on a few large tensors instead of on many small ones
(`pool_values`), and deltas of one structure can be stacked for a mixed batch (`continual.deltas.injection.bank`).

Shapes: L values of equal name, shape and type in one delta, usually one per layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.backbones.sites import Place
from continual.deltas.compose import Add
from continual.deltas.delta import Delta
from continual.deltas.edit import Edit
from continual.deltas.protocols import BatchedForm, Canonicalizable, Values, implements
from continual.deltas.values import check_compatible, iterate_edits, value_keys

EditStep = tuple[Place, Edit]
ValueNames = Mapping[str, str]  # of one step's values: name in the form → key in the delta


@dataclass(frozen=True)
class DeltaLayout:
    """The edits of a delta at their places, with their values.

    Attributes:
        steps: Every edit at every place, in order.
        names: Of each step, the keys of its values by their names in the form.
        values: The delta's values by key.
    """

    steps: tuple[EditStep, ...]
    names: tuple[ValueNames, ...]
    values: Values

    @cached_property
    def structure_key(self) -> tuple[object, ...]:
        """Hashable key, equal for deltas that differ in the numbers in their values only."""
        steps = (
            (place.name, edit, tuple(names.items()))
            for (place, edit), names in zip(self.steps, self.names, strict=True)
        )
        return (*steps, *((key, value.shape, value.dtype) for key, value in self.values.items()))

    @cached_property
    def pool_groups(self) -> tuple[tuple[str, ...], ...]:
        """Keys of the values by pool: values of equal name, shape, type, training and use by a `BatchedForm`."""
        batched_keys = {
            key
            for (_, edit), names in zip(self.steps, self.names, strict=True)
            for key in names.values()
            if implements(type(edit.form), BatchedForm)
        }
        groups: dict[tuple[object, ...], list[str]] = {}
        for key, value in self.values.items():
            group = (key.rpartition("/")[2], value.shape, value.dtype, value.requires_grad, key in batched_keys)
            groups.setdefault(group, []).append(key)
        return tuple(tuple(keys) for keys in groups.values())

    def pools(self) -> list[Tensor]:
        """Stack the values of each group to [L, …]."""
        return [torch.stack([self.values[key] for key in keys]) for keys in self.pool_groups]


def layout_of(backbone: Backbone, delta: Delta) -> DeltaLayout:
    """Return the layout of a delta, with its own forms and values.

    Raises:
        DeltaError: The delta does not fit the backbone.
    """
    check_compatible(backbone, delta)
    edits = list(iterate_edits(backbone, delta.settings, stage=delta.stage))
    names = (value_keys(delta.values, prefix) for _, prefix, _ in edits)
    return DeltaLayout(tuple((place, edit) for place, _, edit in edits), tuple(names), delta.values)


def pool_values(layout: DeltaLayout) -> tuple[DeltaLayout, list[Tensor]]:
    """Move the values into the memory of pools, and their gradients into that of the pools' gradients.

    Values and pools are both leaves: a loss computed from either adds to the same gradient, and an optimiser's step on
    a few pools is a step on all values.

    Returns:
        The layout with values that are views into the pools; and the pools, [L, …] each, where trained values have a
        gradient of zeros.
    """
    pools = [pool.detach() for pool in layout.pools()]
    values: dict[str, Tensor] = {}
    for keys, pool in zip(layout.pool_groups, pools, strict=True):
        values |= {key: pool[number] for number, key in enumerate(keys)}
        if layout.values[keys[0]].requires_grad:
            pool.grad = torch.zeros_like(pool)
            for number, key in enumerate(keys):
                values[key].requires_grad_().grad = pool.grad[number]
            pool.requires_grad_()
    return replace(layout, values={key: values[key] for key in layout.values}), pools


def canonical_layout(layout: DeltaLayout) -> DeltaLayout:
    """Rewrite a delta in forms and sizes that most deltas have in common, for inference only.

    The changes are the same. Scales go into the values, and fields that only concern training (stages, filters) are
    dropped, so that more deltas have one structure.
    """
    steps: list[EditStep] = []
    names: list[ValueNames] = []
    values: dict[str, Tensor] = {}
    for number, ((place, edit), keys) in enumerate(zip(layout.steps, layout.names, strict=True)):
        canonical = _canonical_step(place, edit, {name: layout.values[key] for name, key in keys.items()})
        if canonical is None:
            steps.append((place, edit))
            names.append(keys)
            values |= {key: layout.values[key] for key in keys.values()}
            continue
        canonical_edit, step_values = canonical
        steps.append((place, canonical_edit))
        names.append({name: f"{place.name}/{number}/{name}" for name in step_values})
        values |= {f"{place.name}/{number}/{name}": value for name, value in step_values.items()}
    return DeltaLayout(tuple(steps), tuple(names), values)


def _canonical_step(place: Place, edit: Edit, values: Values) -> tuple[Edit, Values] | None:
    """Return the canonical edit and values, an addition's scale moved into the values; None for none."""
    if not isinstance(edit.form, Canonicalizable):
        return None
    scale = edit.compose.scale if isinstance(edit.compose, Add) else 1
    canonical = edit.form.canonical_form(values, place, scale=scale)
    if canonical is None:
        return None
    form, canonical_values = canonical
    compose = Add() if isinstance(edit.compose, Add) else edit.compose
    return Edit(edit.site, form, edit.reads, compose, added_tokens=edit.added_tokens), canonical_values
