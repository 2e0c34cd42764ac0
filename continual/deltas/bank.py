"""The bank: deltas side by side on the device, so that one batch holds rows of many tasks.

Deltas that have the same edits but for sizes lie in one stack, values [S, …] of S slots, and what they change is
computed for all their rows at once. Rows of one batch come stack by stack, and delta by delta within a stack.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from continual.backbone import Backbone
from continual.deltas.change import Change, Stretch
from continual.deltas.delta import Delta
from continual.deltas.edit import Add, Concatenate, Edit, OverRows, Shareable, Values
from continual.deltas.values import check_fits, steps, values_of
from continual.sites import Place

Step = tuple[Place, Edit]  # a place, and what is done there


@dataclass(frozen=True)
class Shared:
    """A delta's edits as it has them in common with others: at each place the edit, and the delta's own values.

    Two deltas lie in one stack where their `key` is the same.
    """

    steps: tuple[Step, ...]
    values: tuple[Values, ...]

    @property
    def key(self) -> tuple[object, ...]:
        shapes = (tuple((name, value.shape, value.dtype) for name, value in own.items()) for own in self.values)
        return (*((place.name, edit) for place, edit in self.steps), *shapes)


def shared(backbone: Backbone, delta: Delta) -> Shared:
    """The edits of a delta in the forms and sizes that they share with most others.

    Raises DeltaError where the delta does not fit the backbone.
    """
    check_fits(backbone, delta)
    found = [_shared(place, edit, values_of(delta.values, prefix)) for place, prefix, edit in steps(backbone, delta.settings)]
    return Shared(tuple((place, edit) for place, edit, _ in found), tuple(values for _, _, values in found))


def _shared(place: Place, edit: Edit, values: Values) -> tuple[Place, Edit, Values]:
    scale = edit.compose.scale if isinstance(edit.compose, Add) else 1
    found = edit.form.shared_form(values, place, scale=scale) if isinstance(edit.form, Shareable) else None
    if found is None:
        return place, edit, values
    form, own = found
    return place, replace(edit, form=form, compose=Add() if isinstance(edit.compose, Add) else edit.compose), own


class Stack:
    """Deltas that differ in nothing but their values, each in a slot of its own."""

    def __init__(self, like: Shared, device: torch.device) -> None:
        self.steps = like.steps
        self.values = [{name: value.new_empty((0, *value.shape), device=device) for name, value in own.items()} for own in like.values]
        self.free: list[int] = []

    ...
