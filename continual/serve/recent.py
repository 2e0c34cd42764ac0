"""How much came in each of the last seconds."""

import time
from collections.abc import Callable

SECONDS = 60


class RollingCounter:
    """Counts by the second, of which those of the last minute are kept."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._counts: dict[int, int] = {}

    @property
    def uptime(self) -> float:
        """Seconds since the count began."""
        return self._clock() - self._began

    def add(self, count: int) -> None:
        """Count what came at this moment."""
        now = int(self._clock())
        self._counts[now] = self._counts.get(now, 0) + count
        while (oldest := next(iter(self._counts))) < now - SECONDS:
            del self._counts[oldest]

    def by_second(self) -> list[int]:
        """The counts of the last 60 full seconds, oldest first: the second that still runs is not among them."""
        now = int(self._clock())
        return [self._counts.get(second, 0) for second in range(now - SECONDS, now)]
