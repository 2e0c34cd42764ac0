"""Deltas side by side: what each of them changes of its own rows of one batch, computed for all of them at once.

Shapes: S slots, B rows, T tokens, D and E dimensions read and changed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby, pairwise

import torch
from torch import Tensor

from continual.backbone import Backbone
from continual.deltas.change import Change, Stretch
from continual.deltas.delta import Delta
from continual.deltas.edit import Add, Concatenate, Edit, OverRows, Shareable, Values
from continual.deltas.values import check_fits, steps, values_of
from continual.sites import Place

Step = tuple[Place, Edit]


@dataclass(frozen=True)
class Laid:
    """A delta laid out by steps: what is done at which place, and with which values."""

    steps: tuple[Step, ...]
    values: tuple[Values, ...]

    @property
    def mixes(self) -> bool:
        """Whether its rows can be in one batch with others: nothing it changes is the same for all rows of a batch."""
        return not any(place.common for place, _ in self.steps)

    @property
    def key(self) -> tuple[object, ...]:
        """The same for deltas that can lie in one stack."""
        shapes = [tuple((name, value.shape, value.dtype) for name, value in own.items()) for own in self.values]
        return (*((place.name, edit) for place, edit in self.steps), *shapes)


def laid(backbone: Backbone, delta: Delta) -> Laid:
    """The delta as it is. Raises DeltaError where it does not fit the backbone."""
    check_fits(backbone, delta)
    found = list(steps(backbone, delta.settings))
    own = (values_of(delta.values, prefix) for _, prefix, _ in found)
    return Laid(tuple((place, edit) for place, _, edit in found), tuple(own))


def alike(own: Laid) -> Laid:
    """The same changes in forms and sizes that most deltas have in common: to be used, not to be trained."""
    found = [_alike(place, edit, values) for (place, edit), values in zip(own.steps, own.values, strict=True)]
    return Laid(tuple(step for step, _ in found), tuple(values for _, values in found))


def _alike(place: Place, edit: Edit, values: Values) -> tuple[Step, Values]:
    added = isinstance(edit.compose, Add)
    scale = edit.compose.scale if isinstance(edit.compose, Add) else 1
    found = edit.form.shared_form(values, place, scale=scale) if isinstance(edit.form, Shareable) else None
    if found is None:
        return (place, edit), values
    form, shared = found
    # What is left out says how a delta is trained, not what it does.
    compose = Add() if added else edit.compose
    same = Edit(edit.site, form, edit.reads, compose, added_tokens=edit.added_tokens)
    return (place, same), shared


@dataclass(frozen=True)
class Stack:
    """Deltas that differ in nothing but their values, which are [S, …] of S slots."""

    steps: tuple[Step, ...]
    values: tuple[Values, ...]

    def changes(self, rows: Stretch, slots: Sequence[int]) -> Iterator[Change]:
        """What is done to rows whose deltas lie in these slots, one per row, rows of one slot together."""
        runs = Runs.of(slots, self.device)
        for (place, edit), values in zip(self.steps, self.values, strict=True):
            yield Change(place, edit, partial(_change, edit, values, place, runs), rows)

    @property
    def device(self) -> torch.device | None:
        return next((value.device for own in self.values for value in own.values()), None)


def stacked(deltas: Sequence[Laid]) -> Stack:
    """Deltas of one key, in this order."""
    values = [
        {name: torch.stack([own[name] for own in several]) for name in several[0]}
        for several in zip(*(delta.values for delta in deltas), strict=True)
    ]
    return Stack(deltas[0].steps, tuple(values))


@dataclass(frozen=True)
class Runs:
    """Which rows have which slot, in order: runs of rows of one slot.

    slots: of the runs · ends: the rows that begin and end them, one more · index: the slots of what is computed at
    once, rows, or runs where they are all as long.
    """

    slots: tuple[int, ...]
    ends: tuple[int, ...]
    index: Tensor

    @classmethod
    def of(cls, slots: Sequence[int], device: torch.device | None) -> "Runs":
        found = [(slot, len(list(rows))) for slot, rows in groupby(slots)]
        lengths = [length for _, length in found]
        at_once = [slot for slot, _ in found] if len(set(lengths)) == 1 else slots
        index = torch.tensor(at_once, device=device)
        return cls(tuple(slot for slot, _ in found), (0, *accumulate(lengths)), index)

    @property
    def length(self) -> int:
        """How many rows are computed at once with the same values."""
        return self.ends[-1] // len(self.index)


def _change(edit: Edit, values: Values, place: Place, runs: Runs, seen: Tensor) -> Tensor:
    """The change of each row [B, …], of which seen is [B, T, D]."""
    form, before = edit.form, isinstance(edit.compose, Concatenate)  # then it does not depend on what is seen

    def of_slot(slot: int, rows: Tensor) -> Tensor:
        own = form({name: value[slot] for name, value in values.items()}, rows, place)
        return own.expand(len(rows), *own.shape) if before else own

    if len(runs.slots) == 1 or not values:
        return of_slot(runs.slots[0], seen)
    if not isinstance(form, OverRows):
        spans = zip(runs.slots, pairwise(runs.ends), strict=True)
        return torch.cat([of_slot(slot, seen[begin:end]) for slot, (begin, end) in spans])
    own = {name: value.index_select(0, runs.index) for name, value in values.items()}
    if before:
        return form.over_rows(own, seen, place).repeat_interleave(runs.length, dim=0)
    together = seen.reshape(len(runs.index), -1, seen.shape[-1])
    found = form.over_rows(own, together, place)
    return found.expand(-1, together.shape[1], -1).reshape(*seen.shape[:-1], -1)
