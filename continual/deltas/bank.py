"""The bank: learned deltas on the device, stacked, so that one batch can hold rows of any of them.

Shapes: S slots of a stack, B rows of a batch.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from continual.backbone import Backbone
from continual.deltas.delta import Delta, Head
from continual.deltas.laid import Laid, alike, laid
from continual.deltas.mixed import Mixed
from continual.deltas.stack import stack_of
from continual.deltas.values import steps
from continual.errors import DeltaError

FIRST_SLOTS = 8  # of a stack; it doubles when they are taken


@dataclass(frozen=True)
class Slot:
    """Where a delta lies, and its head. shelf: number of its stack · number: of its values there."""

    shelf: int
    number: int
    head: Head | None


class Bank:
    """At most `slots` deltas of one backbone; where one more is taken, the one that was used longest ago goes.

    A device's memory is bounded so: a stack's tensors grow with the deltas in it, to at most twice what they need.
    """

    def __init__(self, backbone: Backbone, *, slots: int) -> None:
        self._backbone, self._slots = backbone, slots
        self._held: OrderedDict[str, Slot] = OrderedDict()  # the one used last at the end
        self._shelves: list[_Shelf] = []
        self._numbers: dict[tuple[object, ...], int] = {}

    @staticmethod
    def takes(backbone: Backbone, delta: Delta) -> bool:
        """Whether rows of the delta can be in one batch with others: it changes nothing that all of them share."""
        return not any(place.common for place, _, _ in steps(backbone, delta.settings))

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def __len__(self) -> int:
        return len(self._held)

    def head(self, name: str) -> Head | None:
        """The head of a delta that is held, on the device."""
        return self._held[name].head

    def hold(self, name: str, delta: Delta, *, beside: Collection[str] = ()) -> None:
        """Take a delta in, on the place of the same name's or of the one used longest ago that is not `beside` it.

        Raises DeltaError where it does not fit the backbone, where it changes what all rows of a batch have in common,
        and where every other delta is needed.
        """
        if not self.takes(self._backbone, delta):
            raise DeltaError(
                f"delta {name!r} changes what all rows of a batch have in common; use it for a batch alone"
            )
        own = alike(laid(self._backbone, delta))
        self.drop(name)
        while len(self._held) >= self._slots:
            oldest = next((held for held in self._held if held not in beside), None)
            if oldest is None:
                raise DeltaError(
                    f"the bank has {self._slots} slots, all needed at once; give it more, or batches of fewer tasks"
                )
            self.drop(oldest)
        number = self._numbers.setdefault(own.key, len(self._shelves))
        if number == len(self._shelves):
            self._shelves.append(_Shelf(own, self._backbone.device))
        head = delta.head and delta.head.to(self._backbone.device)
        self._held[name] = Slot(number, self._shelves[number].put(own), head)

    def drop(self, name: str) -> None:
        """Give up a delta's slot; nothing where it has none."""
        if slot := self._held.pop(name, None):
            self._shelves[slot.shelf].free.append(slot.number)

    def mix(self, names: Sequence[str | None]) -> tuple[list[int], Mixed]:
        """How to order the rows of a batch, and the mixture for them in that order; None is a row without a delta."""
        for name in dict.fromkeys(names):
            if name is not None:
                self._held.move_to_end(name)
        slots = [None if name is None else self._held[name] for name in names]
        last = len(self._shelves)
        where = [(last, 0) if slot is None else (slot.shelf, slot.number) for slot in slots]
        order = sorted(range(len(names)), key=where.__getitem__)
        shares: dict[int, list[int]] = {}
        for row in order:
            shelf, number = where[row]
            if shelf != last:
                shares.setdefault(shelf, []).append(number)
        return order, Mixed([(self._shelves[shelf].stack, numbers) for shelf, numbers in shares.items()], len(names))


class _Shelf:
    """A stack whose slots are filled and freed."""

    def __init__(self, like: Laid, device: torch.device) -> None:
        self._like, self._size = like, 0
        self.stack = stack_of(
            like, [pool.new_empty((len(pool), 0, *pool.shape[1:])).to(device) for pool in like.pools()]
        )
        self.free: list[int] = []

    def put(self, own: Laid) -> int:
        """The slot that now holds these values."""
        if not self.free:
            self._grow(max(self._size, FIRST_SLOTS))
        slot = self.free.pop()
        for held, values in zip(self.stack.pools, own.pools(), strict=True):
            held[:, slot].copy_(values, non_blocking=True)
        return slot

    def _grow(self, more: int) -> None:
        grown = [
            torch.cat((pool, pool.new_zeros(len(pool), more, *pool.shape[2:])), dim=1) for pool in self.stack.pools
        ]
        self.stack = stack_of(self._like, grown)
        self.free = [*reversed(range(self._size, self._size + more)), *self.free]
        self._size += more
