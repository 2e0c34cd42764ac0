"""One batch of rows of many tasks, each through its own delta."""

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

MAX_GATHER_BYTES = 1 << 21  # of a batch's values, taken for all layers together; beyond it, layer by layer


@dataclass(frozen=True)
class DeltaStack:
    """Deltas that differ in nothing but their values.

    pools: values that have name and shape in common, [L, S, …] · where: of each step, by name, pool and number in it.
    """

    steps: tuple[EditStep, ...]
    pools: tuple[Tensor, ...]
    pool_index: tuple[Mapping[str, tuple[int, int]], ...]

    def changes(self, rows: RowRange, slots: Sequence[int]) -> Iterator[PlacedEdit]:
        """What is done to rows whose deltas lie in these slots, one per row, rows of one slot together."""
        runs = SlotRuns.of(slots, self.pools[0].device if self.pools else None)
        taken = _Taken(self.pools, runs)
        for (place, edit), where in zip(self.steps, self.pool_index, strict=True):
            form = edit.form
            if where and len(runs.slots) > 1 and implements(type(form), BatchedForm):
                taken.of_all_layers(where)
                make = partial(_at_once, edit, cast(BatchedForm, form), partial(taken, where), place, runs)
            else:
                of_slots = [{name: self.pools[p][i, slot] for name, (p, i) in where.items()} for slot in runs.slots]
                make = partial(_run_by_run, edit, of_slots, place, runs)
            yield PlacedEdit(place, edit, make, rows)


@dataclass(frozen=True)
class MixedBatch:
    """Which rows of a batch go through which deltas; rows that no share names go through none.

    shares: stacks with the slots of their rows, one per row, rows of one slot together; the rows of the first share
    come first, and so on · count: rows of the batch in all.
    """

    stacks: Sequence[tuple[DeltaStack, Sequence[int]]]
    count: int

    def changes(self) -> Iterator[PlacedEdit]:
        """All that is done to the batch."""
        begin = 0
        for stack, slots in self.stacks:
            yield from stack.changes(RowRange(begin, begin + len(slots), self.count), slots)
            begin += len(slots)


def stack_deltas(like: DeltaLayout, pools: Sequence[Tensor]) -> DeltaStack:
    """Deltas laid out as this one, whose values are in these pools [L, S, …]."""
    place_of = {key: (pool, number) for pool, keys in enumerate(like.pool_groups) for number, key in enumerate(keys)}
    where = [{name: place_of[key] for name, key in names.items()} for names in like.names]
    return DeltaStack(like.steps, tuple(pools), tuple(where))


@dataclass(frozen=True)
class SlotRuns:
    """Which rows have which slot: runs of rows of one slot.

    slots: of the runs · ends: the rows that begin and end them, one more · index: the slots of what is computed at
    once, which are runs where all of them are as long, else rows.
    """

    slots: tuple[int, ...]
    ends: tuple[int, ...]
    index: Tensor

    @classmethod
    def of(cls, slots: Sequence[int], device: torch.device | None) -> "SlotRuns":
        found = [(slot, len(list(rows))) for slot, rows in groupby(slots)]
        lengths = [length for _, length in found]
        at_once = [slot for slot, _ in found] if len(set(lengths)) == 1 else slots
        index = torch.tensor(at_once, device=device)
        return cls(tuple(slot for slot, _ in found), (0, *accumulate(lengths)), index)

    def covers_all_slots(self, slots: int) -> bool:
        """Whether what is computed at once are runs of all slots, in their order."""
        return len(self.index) == len(self.slots) == slots and self.slots == tuple(range(slots))

    @property
    def length(self) -> int:
        """How many rows are computed at once with the same values."""
        return self.ends[-1] // len(self.index)


class _Taken:
    """The values of what is computed at once: those of all layers, taken beforehand, or of each when it is reached."""

    def __init__(self, pools: Sequence[Tensor], runs: SlotRuns) -> None:
        self._pools, self._runs = pools, runs
        self._known: dict[int, tuple[Tensor, ...]] = {}

    def __call__(self, where: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
        return {name: self._of(pool, number) for name, (pool, number) in where.items()}

    def of_all_layers(self, where: Mapping[str, tuple[int, int]]) -> None:
        """Take the pools named, where they are small: not within a layer, which may be computed twice."""
        index = self._runs.index
        for pool in {pool for pool, _ in where.values()} - self._known.keys():
            values = self._pools[pool]
            if self._runs.covers_all_slots(values.shape[1]):
                self._known[pool] = values.unbind()
            elif values.nbytes // values.shape[1] * len(index) <= MAX_GATHER_BYTES:
                self._known[pool] = values.index_select(1, index).unbind()

    def _of(self, pool: int, number: int) -> Tensor:
        if pool in self._known:
            return self._known[pool][number]
        return self._pools[pool][number].index_select(0, self._runs.index)


def _at_once(
    edit: Edit, form: BatchedForm, taken: Callable[[], Values], place: Place, runs: SlotRuns, seen: Tensor
) -> Tensor:
    """The change of each row [B, …], of which seen is [B, T, D]."""
    if isinstance(edit.compose, Concatenate):  # what does not depend on what is seen
        return form.batched_call(to_device_of(taken(), seen), seen, place).repeat_interleave(runs.length, dim=0)
    together = seen if runs.length == 1 and seen.dim() == 3 else seen.reshape(len(runs.index), -1, seen.shape[-1])
    found = form.batched_call(to_device_of(taken(), seen), together, place)
    if together is seen:
        return found
    if found.shape[1] == 1 and seen.dim() == 3:  # the same for every token
        return found.repeat_interleave(runs.length, dim=0)
    return found.expand(-1, together.shape[1], -1).reshape(*seen.shape[:-1], -1)


def _run_by_run(edit: Edit, of_slots: Sequence[Values], place: Place, runs: SlotRuns, seen: Tensor) -> Tensor:
    """The same, delta by delta."""
    changes = []
    for values, (begin, end) in zip(of_slots, pairwise(runs.ends), strict=True):
        own = edit.form(to_device_of(values, seen), seen[begin:end], place)
        changes.append(own.expand(end - begin, *own.shape) if isinstance(edit.compose, Concatenate) else own)
    return changes[0] if len(changes) == 1 else torch.cat(changes)
