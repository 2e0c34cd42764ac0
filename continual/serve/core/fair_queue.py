"""A fair queue of lanes that are served in turn, so that a flooded lane does not starve the others.

Deficit round robin: whenever a lane's turn ends it is given credit for a `quantum` of work, and while its turn lasts it
spends what it has. Shreedhar and Varghese (1995), "Efficient Fair Queueing Using Deficit Round Robin". Within a lane
the nearest deadline comes first.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Generic, Protocol, TypeVar

QUANTUM = 64  # tokens: a short text or two


class QueueItem(Protocol):
    """An item that can wait in a `FairQueue`."""

    @property
    def lane(self) -> str:
        """The name of the lane in which the item waits."""

    @property
    def cost(self) -> int:
        """The work that the item takes, such as tokens."""

    @property
    def deadline(self) -> float:
        """The moment by which the item should be done; within a lane the smallest comes first."""


QueueItemT = TypeVar("QueueItemT", bound=QueueItem)


@dataclass
class _Lane(Generic[QueueItemT]):
    heap: list[tuple[float, int, QueueItemT]] = field(default_factory=list)  # deadline, order of arrival, item
    credit: int = QUANTUM


class FairQueue(Generic[QueueItemT]):
    """A queue of lanes that share the work equally, by cost.

    Attributes:
        cost: The summed cost of all items that wait.
    """

    def __init__(self) -> None:
        self._lanes: OrderedDict[str, _Lane[QueueItemT]] = OrderedDict()
        self._arrivals = count()  # of equal deadlines, the first to arrive comes first
        self._length = self.cost = 0

    def __len__(self) -> int:
        """Return the number of items that wait."""
        return self._length

    def put(self, item: QueueItemT) -> None:
        """Add an item to its lane."""
        lane = self._lanes.setdefault(item.lane, _Lane())
        heappush(lane.heap, (item.deadline, next(self._arrivals), item))
        self._length, self.cost = self._length + 1, self.cost + item.cost

    def take(self) -> QueueItemT:
        """Remove and return the next item.

        Raises:
            LookupError: The queue is empty.
        """
        while True:
            name, lane = next(iter(self._lanes.items()), (None, None))
            if name is None or lane is None:
                raise LookupError("nothing waits")
            item = lane.heap[0][-1]
            if item.cost <= lane.credit:
                break
            lane.credit += QUANTUM
            self._lanes.move_to_end(name)
        heappop(lane.heap)
        lane.credit -= item.cost
        if not lane.heap:
            del self._lanes[name]
        self._length, self.cost = self._length - 1, self.cost - item.cost
        return item
