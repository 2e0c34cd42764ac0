"""A delta laid out by what is done where, with values that are alike next to each other."""

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
ValueNames = Mapping[str, str]  # of a step's values: what its form calls them, and what the delta does


@dataclass(frozen=True)
class DeltaLayout:
    """What is done at which place, with which of the delta's values."""

    steps: tuple[EditStep, ...]
    names: tuple[ValueNames, ...]
    values: Values

    @cached_property
    def structure_key(self) -> tuple[object, ...]:
        """The same for deltas that differ in nothing but the numbers in their values."""
        done = (
            (place.name, edit, tuple(own.items())) for (place, edit), own in zip(self.steps, self.names, strict=True)
        )
        return (*done, *((key, value.shape, value.dtype) for key, value in self.values.items()))

    @cached_property
    def pool_groups(self) -> tuple[tuple[str, ...], ...]:
        """The values' keys, those next to each other whose tensors make one pool: of a name, shape and type."""
        at_once = {
            key
            for (_, edit), own in zip(self.steps, self.names, strict=True)
            for key in own.values()
            if implements(type(edit.form), BatchedForm)
        }
        found: dict[tuple[object, ...], list[str]] = {}
        for key, value in self.values.items():
            alike = (key.rpartition("/")[2], value.shape, value.dtype, value.requires_grad, key in at_once)
            found.setdefault(alike, []).append(key)
        return tuple(tuple(keys) for keys in found.values())

    def pools(self) -> list[Tensor]:
        """The values, [L, …] of the L of each group."""
        return [torch.stack([self.values[key] for key in keys]) for keys in self.pool_groups]


def layout_of(backbone: Backbone, delta: Delta) -> DeltaLayout:
    """The delta as it is. Raises DeltaError where it does not fit the backbone."""
    check_compatible(backbone, delta)
    found = list(iterate_edits(backbone, delta.settings))
    names = (value_keys(delta.values, prefix) for _, prefix, _ in found)
    return DeltaLayout(tuple((place, edit) for place, _, edit in found), tuple(names), delta.values)


def pool_values(own: DeltaLayout) -> tuple[DeltaLayout, list[Tensor]]:
    """The same values in the memory of pools, their gradients in that of the pools' gradients.

    Both are leaves: what is computed from values, or from pools, adds to the same gradient, and a step that an
    optimiser takes with a few pools is taken by all the values.
    """
    pools = [pool.detach() for pool in own.pools()]
    values: dict[str, Tensor] = {}
    for keys, pool in zip(own.pool_groups, pools, strict=True):
        values |= {key: pool[number] for number, key in enumerate(keys)}
        if own.values[keys[0]].requires_grad:
            pool.grad = torch.zeros_like(pool)
            for number, key in enumerate(keys):
                values[key].requires_grad_().grad = pool.grad[number]
            pool.requires_grad_()
    return replace(own, values={key: values[key] for key in own.values}), pools


def canonical_layout(own: DeltaLayout) -> DeltaLayout:
    """The same changes in forms and sizes that most deltas have in common: to be used, not to be trained."""
    made: list[EditStep] = []
    names: list[ValueNames] = []
    values: dict[str, Tensor] = {}
    for number, ((place, edit), called) in enumerate(zip(own.steps, own.names, strict=True)):
        scale = edit.compose.scale if isinstance(edit.compose, Add) else 1
        given = {name: own.values[key] for name, key in called.items()}
        found = edit.form.canonical_form(given, place, scale=scale) if isinstance(edit.form, Canonicalizable) else None
        if found is None:
            made.append((place, edit))
            names.append(called)
            values |= {key: own.values[key] for key in called.values()}
            continue
        form, shared = found
        compose = Add() if isinstance(edit.compose, Add) else edit.compose
        # What is left out says how a delta is trained, not what it does.
        made.append((place, Edit(edit.site, form, edit.reads, compose, added_tokens=edit.added_tokens)))
        names.append({name: f"{place.name}/{number}/{name}" for name in shared})
        values |= {f"{place.name}/{number}/{name}": value for name, value in shared.items()}
    return DeltaLayout(tuple(made), tuple(names), values)
