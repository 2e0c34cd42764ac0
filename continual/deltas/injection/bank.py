"""The bank: learned deltas on the device, stacked, so that one batch can hold rows of any of them.

Shapes: S slots of a stack, B rows of a batch.
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
    """At most `slots` deltas of one backbone; where one more is taken in, the one that was used longest ago goes.

    A stack's tensors double when its slots are taken, and go when it is empty.
    """

    def __init__(self, backbone: Backbone, *, slots: int) -> None:
        self._backbone, self._slots = backbone, slots
        self._held: OrderedDict[str, tuple[int, int]] = OrderedDict()  # shelf and slot; the one used last at the end
        self._shelves: list[_StackSlots] = []
        self._numbers: dict[tuple[object, ...], int] = {}

    @staticmethod
    def can_batch(backbone: Backbone, delta: Delta) -> bool:
        """Whether rows of the delta can be in one batch with others: it changes nothing that all of them share."""
        return not any(place.is_shared for place, _, _ in iterate_edits(backbone, delta.settings))

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def __iter__(self) -> Iterator[str]:
        return iter([*self._held])

    def __len__(self) -> int:
        return len(self._held)

    def put(self, name: str, delta: Delta, *, beside: Collection[str] = (), backbone: Backbone | None = None) -> None:
        """Take a delta in, on the place of the same name's or of the one used longest ago that is not `beside` it.

        backbone: the bank's, with edits where this delta has them, if that is elsewhere.

        Raises DeltaError where it does not fit the backbone, where it changes what all rows of a batch have in common,
        and where every other delta is needed.
        """
        backbone = backbone or self._backbone
        if not self.can_batch(backbone, delta):
            raise DeltaError(
                f"delta {name!r} changes what all rows of a batch have in common; use it for a batch alone"
            )
        own = canonical_layout(layout_of(backbone, delta))
        self.evict(name)
        while len(self._held) >= self._slots:
            oldest = next((held for held in self._held if held not in beside), None)
            if oldest is None:
                raise DeltaError(
                    f"the bank has {self._slots} slots, all needed at once; give it more, or batches of fewer tasks"
                )
            self.evict(oldest)
        number = self._numbers.setdefault(own.structure_key, len(self._shelves))
        if number == len(self._shelves):
            self._shelves.append(_StackSlots(own, self._backbone.device))
        self._held[name] = number, self._shelves[number].put(own)

    def evict(self, name: str) -> None:
        """Give up a delta's slot; nothing where it has none."""
        if name in self._held:
            shelf, slot = self._held.pop(name)
            self._shelves[shelf].give_up(slot)

    def mixed_batch(self, names: Sequence[str | None]) -> tuple[list[int], MixedBatch]:
        """How to order the rows of a batch, and the mixture for them in that order; None is a row without a delta.

        It is good until another delta is taken in.
        """
        for name in dict.fromkeys(names):
            if name is not None:
                self._held.move_to_end(name)
        last = len(self._shelves)
        where = [(last, 0) if name is None else self._held[name] for name in names]
        order = sorted(range(len(names)), key=where.__getitem__)
        shares: dict[int, list[int]] = {}
        for row in order:
            shelf, slot = where[row]
            if shelf != last:
                shares.setdefault(shelf, []).append(slot)
        return order, MixedBatch([(self._shelves[shelf].stack, slots) for shelf, slots in shares.items()], len(names))


class _StackSlots:
    """A stack whose slots are filled and freed."""

    def __init__(self, like: DeltaLayout, device: torch.device) -> None:
        self._like, self._device = like, device
        self._empty()

    def _empty(self) -> None:
        pools = [pool.new_empty((len(pool), 0, *pool.shape[1:]), device=self._device) for pool in self._like.pools()]
        self.stack, self._size = stack_deltas(self._like, pools), 0
        self._free: list[int] = []

    def put(self, own: DeltaLayout) -> int:
        """The slot that now holds these values."""
        if not self._free:
            self._grow(max(self._size, 1))
        slot = self._free.pop()
        for held, values in zip(self.stack.pools, own.pools(), strict=True):
            held[:, slot].copy_(values, non_blocking=True)
        return slot

    def give_up(self, slot: int) -> None:
        self._free.append(slot)
        if len(self._free) == self._size:
            self._empty()

    def _grow(self, more: int) -> None:
        grown = [
            torch.cat((pool, pool.new_zeros(len(pool), more, *pool.shape[2:])), dim=1) for pool in self.stack.pools
        ]
        self.stack = stack_deltas(self._like, grown)
        self._free = [*reversed(range(self._size, self._size + more)), *self._free]
        self._size += more
