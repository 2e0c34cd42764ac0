"""Mixed batches: rows of many tasks in one forward pass, each row through its own delta.

Deltas of one structure lie stacked in the slots of a `DeltaStack`. A form that is a `BatchedForm` is computed once for
all rows of a stack, with values gathered by slot; any other form once per run of rows of one slot.

Shapes: L values of equal shape in one delta (one per layer, usually), S slots of a stack, B rows of a batch, T tokens.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby, pairwise
from typing import cast

import torch
from torch import Tensor

from continual.backbones.sites import Place
from continual.deltas.compose import Concatenate
from continual.deltas.edit import Edit
from continual.deltas.injection.layout import DeltaLayout, EditStep
from continual.deltas.injection.placed_edit import PlacedEdit, RowRange
from continual.deltas.protocols import BatchedForm, Values, implements, to_device_of

MAX_GATHER_BYTES = 1 << 21  # of one pool's values of a batch gathered for all layers together; above it, per layer

PoolIndex = Mapping[str, tuple[int, int]]  # of one step: value name → (pool, index in the pool's first dimension)


@dataclass(frozen=True)
class DeltaStack:
    """Deltas of one structure, which differ in their values only.

    Attributes:
        steps: The edits at their places, in order.
        pools: Values with name and shape in common, [L, S, …] each.
        pool_index: Of each step, pool and index in it of each value, by name.
    """

    steps: tuple[EditStep, ...]
    pools: tuple[Tensor, ...]
    pool_index: tuple[PoolIndex, ...]

    def placed_edits(self, rows: RowRange, slots: Sequence[int], *, repeated: bool = False) -> Iterator[PlacedEdit]:
        """Yield the edits of consecutive rows of a batch.

        Args:
            rows: The rows.
            slots: The slot of each row's delta; rows of one slot are adjacent.
            repeated: Whether many passes follow, so that all values are gathered once and held.
        """
        runs = SlotRuns.of(slots, self.pools[0].device if self.pools else None)
        gathered = _GatheredValues(self.pools, runs, max_bytes=sys.maxsize if repeated else MAX_GATHER_BYTES)
        for (place, edit), index in zip(self.steps, self.pool_index, strict=True):
            form = edit.form
            if index and len(runs.slots) > 1 and implements(type(form), BatchedForm):
                gathered.prefetch(index)
                batched = cast(BatchedForm, form)
                compute_change = partial(_batched_change, edit, batched, partial(gathered, index), place, runs)
            else:
                run_values = [{name: self.pools[p][i, slot] for name, (p, i) in index.items()} for slot in runs.slots]
                compute_change = partial(_change_run_by_run, edit, run_values, place, runs)
            yield PlacedEdit(place, edit, compute_change, rows)


@dataclass(frozen=True)
class MixedBatch:
    """The assignment of a batch's rows to deltas.

    Attributes:
        stacks: Stacks with the slot of each of their rows, rows of one slot adjacent; the rows of the first stack come
            first in the batch, and so on. Rows after those of all stacks have no delta.
        count: B, the number of rows of the batch.
    """

    stacks: Sequence[tuple[DeltaStack, Sequence[int]]]
    count: int

    def placed_edits(self, *, repeated: bool = False) -> Iterator[PlacedEdit]:
        """Yield all edits of the batch.

        Args:
            repeated: Whether many passes follow.
        """
        begin = 0
        for stack, slots in self.stacks:
            yield from stack.placed_edits(RowRange(begin, begin + len(slots), self.count), slots, repeated=repeated)
            begin += len(slots)


def stack_deltas(layout: DeltaLayout, pools: Sequence[Tensor]) -> DeltaStack:
    """Return a stack of deltas of one layout, with values in `pools` [L, S, …], in its groups' order."""
    place_of = {key: (pool, number) for pool, keys in enumerate(layout.pool_groups) for number, key in enumerate(keys)}
    pool_index = [{name: place_of[key] for name, key in names.items()} for names in layout.names]
    return DeltaStack(layout.steps, tuple(pools), tuple(pool_index))


@dataclass(frozen=True)
class SlotRuns:
    """Runs of adjacent rows with one slot.

    Attributes:
        slots: Slot of each run.
        ends: First row of each run, and at last the number of rows.
        index: Slots to gather for one batched call: one per run where all runs have equal length, else one per row.
    """

    slots: tuple[int, ...]
    ends: tuple[int, ...]
    index: Tensor

    @classmethod
    def of(cls, slots: Sequence[int], device: torch.device | None) -> "SlotRuns":
        """Find the runs in the slots of a batch's rows; `index` is on `device`."""
        runs = [(slot, len(list(rows))) for slot, rows in groupby(slots)]
        lengths = [length for _, length in runs]
        index = torch.tensor([slot for slot, _ in runs] if len(set(lengths)) == 1 else slots, device=device)
        return cls(tuple(slot for slot, _ in runs), (0, *accumulate(lengths)), index)

    def covers_all_slots(self, slots: int) -> bool:
        """Return whether the gathered slots are all `slots` slots in order, so nothing need be copied."""
        return len(self.index) == len(self.slots) == slots and self.slots == tuple(range(slots))

    @property
    def length(self) -> int:
        """Number of rows per gathered slot."""
        return self.ends[-1] // len(self.index)


class _GatheredValues:
    """Values of a batched call, gathered for all layers beforehand, or for each layer when it is reached."""

    def __init__(self, pools: Sequence[Tensor], runs: SlotRuns, *, max_bytes: int) -> None:
        self._pools, self._runs, self._max_bytes = pools, runs, max_bytes
        self._prefetched: dict[int, tuple[Tensor, ...]] = {}

    def __call__(self, index: PoolIndex) -> dict[str, Tensor]:
        return {name: self._gather(pool, number) for name, (pool, number) in index.items()}

    def prefetch(self, index: PoolIndex) -> None:
        """Gather whole pools where they are small enough; not within a layer, which may be computed twice."""
        slots = self._runs.index
        for pool in {pool for pool, _ in index.values()} - self._prefetched.keys():
            values = self._pools[pool]
            if self._runs.covers_all_slots(values.shape[1]):
                self._prefetched[pool] = values.unbind()
            elif values.nbytes // values.shape[1] * len(slots) <= self._max_bytes:
                self._prefetched[pool] = values.index_select(1, slots).unbind()

    def _gather(self, pool: int, number: int) -> Tensor:
        if pool in self._prefetched:
            return self._prefetched[pool][number]
        return self._pools[pool][number].index_select(0, self._runs.index)


def _batched_change(
    edit: Edit, form: BatchedForm, values: Callable[[], Values], place: Place, runs: SlotRuns, inputs: Tensor
) -> Tensor:
    """Compute the change [B, …] of inputs [B, …, D] in one call, each row by its own values."""
    if isinstance(edit.compose, Concatenate):  # the change does not depend on the inputs
        return form.batched_call(to_device_of(values(), inputs), inputs, place).repeat_interleave(runs.length, dim=0)
    by_slot = (
        inputs if runs.length == 1 and inputs.dim() == 3 else inputs.reshape(len(runs.index), -1, inputs.shape[-1])
    )
    change = form.batched_call(to_device_of(values(), inputs), by_slot, place)
    if by_slot is inputs:
        return change
    if change.shape[1] == 1 and inputs.dim() == 3:  # the same for every token
        return change.repeat_interleave(runs.length, dim=0)
    return change.expand(-1, by_slot.shape[1], -1).reshape(*inputs.shape[:-1], -1)


def _change_run_by_run(
    edit: Edit, run_values: Sequence[Values], place: Place, runs: SlotRuns, inputs: Tensor
) -> Tensor:
    """Compute the change [B, …] of inputs [B, …, D], one call per run of rows with the same values."""
    changes = []
    for values, (begin, end) in zip(run_values, pairwise(runs.ends), strict=True):
        change = edit.form(to_device_of(values, inputs), inputs[begin:end], place)
        changes.append(change.expand(end - begin, *change.shape) if isinstance(edit.compose, Concatenate) else change)
    return changes[0] if len(changes) == 1 else torch.cat(changes)
