"""Work that waits, in lanes that are served in turn, so that none starves while another is flooded.

Deficit round robin: whenever a lane's turn ends it is given credit for a `quantum` of work, and while its turn lasts it
spends what it has. Shreedhar and Varghese (1995), "Efficient Fair Queueing Using Deficit Round Robin". In a lane what
has to be done first comes first.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Generic, Protocol, TypeVar

QUANTUM = 64  # tokens: a short text or two


class QueueItem(Protocol):
    """What can wait. lane: of whom · cost: what it takes, such as tokens · deadline: when it has to be done."""

    @property
    def lane(self) -> str: ...
    @property
    def cost(self) -> int: ...
    @property
    def deadline(self) -> float: ...


W = TypeVar("W", bound=QueueItem)


@dataclass
class _Lane(Generic[W]):
    waiting: list[tuple[float, int, W]] = field(default_factory=list)
    credit: int = QUANTUM


class FairQueue(Generic[W]):
    """Work by lane. cost: what all that waits would take."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[str, _Lane[W]] = OrderedDict()
        self._numbers = count()  # of equal deadlines, what came first comes first
        self._size = self.cost = 0

    def __len__(self) -> int:
        return self._size

    def put(self, work: W) -> None:
        """Let work wait for its lane's turn."""
        lane = self._lanes.setdefault(work.lane, _Lane())
        heappush(lane.waiting, (work.deadline, next(self._numbers), work))
        self._size, self.cost = self._size + 1, self.cost + work.cost

    def take(self) -> W:
        """What is to be done next. Raises LookupError where nothing waits."""
        while True:
            name, lane = next(iter(self._lanes.items()), (None, None))
            if name is None or lane is None:
                raise LookupError("nothing waits")
            work = lane.waiting[0][-1]
            if work.cost <= lane.credit:
                break
            lane.credit += QUANTUM
            self._lanes.move_to_end(name)
        heappop(lane.waiting)
        lane.credit -= work.cost
        if not lane.waiting:
            del self._lanes[name]
        self._size, self.cost = self._size - 1, self.cost - work.cost
        return work
