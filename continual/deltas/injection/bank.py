"""The bank: learned deltas on the device, stacked, so that one batch can hold rows of any of them.

Deltas of one structure share a stack. Shapes: L values of equal shape in one delta, S slots of a stack, B rows of a
batch.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence

import torch

from continual.backbones.backbone import Backbone
from continual.deltas.delta import Delta
from continual.deltas.injection.layout import DeltaLayout, canonical_layout, layout_of
from continual.deltas.injection.mixed_batch import MixedBatch, stack_deltas
from continual.deltas.values import iterate_edits
from continual.errors import DeltaError


class Bank:
    """A least-recently-used cache of at most `slots` deltas, from which mixed batches are formed.

    The tensors of a stack double when its slots are full, and are freed when it is empty.
    """

    def __init__(self, backbone: Backbone, *, slots: int) -> None:
        """Create an empty bank for deltas of `backbone`, on its device."""
        self._backbone, self._slots = backbone, slots
        self._locations: OrderedDict[str, tuple[int, int]] = OrderedDict()  # stack and slot; most recently used last
        self._stacks: list[_StackSlots] = []
        self._stack_numbers: dict[tuple[object, ...], int] = {}  # by structure

    @staticmethod
    def can_batch(backbone: Backbone, delta: Delta) -> bool:
        """Return whether the delta can share a batch: none of its places has `Place.is_shared`."""
        edits = iterate_edits(backbone, delta.settings, stage=delta.stage)
        return not any(place.is_shared for place, _, _ in edits)

    def __contains__(self, name: str) -> bool:
        return name in self._locations

    def __iter__(self) -> Iterator[str]:
        return iter([*self._locations])

    def __len__(self) -> int:
        return len(self._locations)

    def put(self, name: str, delta: Delta, *, beside: Collection[str] = (), backbone: Backbone | None = None) -> None:
        """Add a delta, in place of one of the same name or, in a full bank, of the least recently used one.

        Args:
            name: The name for `mixed_batch`.
            delta: a delta of the bank's backbone; its tensors are copied.
            beside: Names that must not be evicted.
            backbone: The bank's backbone with edits where this delta has them, if elsewhere than in the bank's.

        Raises:
            DeltaError: The delta does not fit the backbone, it changes a module that all rows share, or every other
                delta is `beside` it.
        """
        backbone = backbone or self._backbone
        if not self.can_batch(backbone, delta):
            raise DeltaError(
                f"delta {name!r} changes what all rows of a batch have in common; use it for a batch alone"
            )
        layout = canonical_layout(layout_of(backbone, delta))
        self.evict(name)
        self._make_room(beside)
        number = self._stack_numbers.setdefault(layout.structure_key, len(self._stacks))
        if number == len(self._stacks):
            self._stacks.append(_StackSlots(layout, self._backbone.device))
        self._locations[name] = number, self._stacks[number].put(layout)

    def _make_room(self, needed: Collection[str]) -> None:
        """Evict the least recently used deltas, but for the needed ones, until one more fits."""
        while len(self._locations) >= self._slots:
            oldest = next((name for name in self._locations if name not in needed), None)
            if oldest is None:
                raise DeltaError(
                    f"the bank has {self._slots} slots, all needed at once; give it more, or batches of fewer tasks"
                )
            self.evict(oldest)

    def evict(self, name: str) -> None:
        """Free the slot of a delta; do nothing where it has none."""
        if name in self._locations:
            number, slot = self._locations.pop(name)
            self._stacks[number].free(slot)

    def mixed_batch(self, names: Sequence[str | None]) -> tuple[list[int], MixedBatch]:
        """Sort the rows of a batch by delta, and return their order and the mixed batch of rows in that order.

        The result is valid until the next `put`.

        Args:
            names: The delta of each row; None for a row without a delta.

        Returns:
            A permutation of the B row numbers, and the mixed batch for rows in this order.
        """
        for name in dict.fromkeys(names):
            if name is not None:
                self._locations.move_to_end(name)
        no_stack = len(self._stacks)  # sorts rows without a delta behind all others
        locations = [(no_stack, 0) if name is None else self._locations[name] for name in names]
        order = sorted(range(len(names)), key=locations.__getitem__)
        slots_by_stack: dict[int, list[int]] = {}
        for row in order:
            number, slot = locations[row]
            if number != no_stack:
                slots_by_stack.setdefault(number, []).append(slot)
        stacks = [(self._stacks[number].stack, slots) for number, slots in slots_by_stack.items()]
        return order, MixedBatch(stacks, len(names))


class _StackSlots:
    """A stack of deltas of one layout, whose slots are filled and freed."""

    def __init__(self, layout: DeltaLayout, device: torch.device) -> None:
        self._layout, self._device = layout, device
        self._clear()

    def _clear(self) -> None:
        pools = [pool.new_empty((len(pool), 0, *pool.shape[1:]), device=self._device) for pool in self._layout.pools()]
        self.stack, self._size = stack_deltas(self._layout, pools), 0
        self._free: list[int] = []

    def put(self, layout: DeltaLayout) -> int:
        """Copy the values of a layout of the same structure into a free slot, and return the slot."""
        if not self._free:
            self._grow(max(self._size, 1))
        slot = self._free.pop()
        for pool, values in zip(self.stack.pools, layout.pools(), strict=True):
            pool[:, slot].copy_(values, non_blocking=True)
        return slot

    def free(self, slot: int) -> None:
        """Free a slot, and all memory when it was the last one in use."""
        self._free.append(slot)
        if len(self._free) == self._size:
            self._clear()

    def _grow(self, new_slots: int) -> None:
        pools = [
            torch.cat((pool, pool.new_zeros(len(pool), new_slots, *pool.shape[2:])), dim=1) for pool in self.stack.pools
        ]
        self.stack = stack_deltas(self._layout, pools)
        self._free = [*reversed(range(self._size, self._size + new_slots)), *self._free]
        self._size += new_slots
