"""Dynamic batching: while one batch is answered, the requests of many clients gather to the next.

No batch waits to become full: alone, an item is answered at once, and under load batches are as large as they may be.
Results that take many steps are deferred, and one step of theirs is made after each batch.
"""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import Condition, Thread
from typing import Generic, Protocol, TypeVar

from continual.errors import Closing, TooBusy, TooLate
from continual.serve.core.fair_queue import FairQueue

RATE_SMOOTHING = 0.2  # weight of the last batch in the moving average of the speed


class BatchItem(Protocol):
    """An item that can be batched."""

    @property
    def lane(self) -> str:
        """The queue lane in which the item waits its turn."""

    @property
    def cost(self) -> int:
        """The approximate number of tokens."""


ItemT = TypeVar("ItemT", bound=BatchItem)
ResultT = TypeVar("ResultT")


class BatchRequest(Generic[ItemT, ResultT]):
    """Items that were submitted together and whose results are delivered together.

    Attributes:
        deadline: The moment, by `time.monotonic`, after which the items are not worked on any more.
        answers: The results in the order of the items; cancel it to skip the items that still wait.
    """

    def __init__(self, items: Sequence[ItemT], deadline: float) -> None:
        self.deadline, self.answers = deadline, Future[list[ResultT]]()
        self._results: dict[int, ResultT] = {}
        self._count = len(items)

    def set_result(self, index: int, result: ResultT | Exception) -> None:
        """Set the result of the item at `index`; an exception fails the whole request."""
        if isinstance(result, Exception):
            self.set_exception(result)
            return
        self._results[index] = result
        if len(self._results) == self._count:
            with suppress(InvalidStateError):  # it was cancelled meanwhile
                self.answers.set_result([self._results[i] for i in range(self._count)])

    def set_exception(self, error: Exception) -> None:
        """Fail the whole request."""
        with suppress(InvalidStateError):
            self.answers.set_exception(error)


@dataclass(frozen=True)
class _QueuedItem(Generic[ItemT, ResultT]):
    request: BatchRequest[ItemT, ResultT]
    index: int
    item: ItemT

    @property
    def lane(self) -> str:
        return self.item.lane

    @property
    def cost(self) -> int:
        return self.item.cost

    @property
    def deadline(self) -> float:
        return self.request.deadline


@dataclass(frozen=True, eq=False)
class Deferred(Generic[ResultT]):
    """A result that is delivered by later steps.

    Attributes:
        start: Called with a function that takes the result, and one that returns whether nobody waits for it any more.
    """

    start: Callable[[Callable[[ResultT | Exception], None], Callable[[], bool]], None]


class DynamicBatcher(Generic[ItemT, ResultT]):
    """A queue and one thread that answers it in batches.

    Args:
        work: Answers a batch: a result, a deferred one or an exception for each item, in order.
        batch_cost: Cost at which a batch is full; the last item may exceed it.
        max_waiting: Items that may wait, those with deferred results included.
        advance: Makes one step of the deferred results; returns whether any are left.
    """

    def __init__(
        self,
        work: Callable[[Sequence[ItemT]], Sequence[ResultT | Deferred[ResultT] | Exception]],
        *,
        batch_cost: int,
        max_waiting: int,
        advance: Callable[[], bool] = lambda: False,
    ) -> None:
        self._work, self._batch_cost, self._max_waiting = work, batch_cost, max_waiting
        self._advance, self._deferred = advance, 0
        self._queue: FairQueue[_QueuedItem[ItemT, ResultT]] = FairQueue()
        self._changed, self._closing = Condition(), False
        self._speed: float | None = None  # cost per second
        self._thread = Thread(target=self._run, name="answers", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Return the number of items that wait, those with deferred results included."""
        return len(self._queue) + self._deferred

    @property
    def estimated_wait(self) -> float:
        """Seconds that one more item would wait, by the speed so far; 0 while no speed was measured."""
        return self._queue.cost / self._speed if self._speed else 0.0

    def submit(self, items: Sequence[ItemT], *, seconds: float) -> BatchRequest[ItemT, ResultT]:
        """Queue items, all of them or none, for at most `seconds`.

        Raises:
            TooBusy: Too many items wait already, or these would wait for longer than `seconds`.
            Closing: `close` was called.
        """
        request: BatchRequest[ItemT, ResultT] = BatchRequest(items, time.monotonic() + seconds)
        with self._changed:
            if self._closing:
                raise Closing("the server is closing; ask another one, or this one when it is back")
            if len(self) + len(items) > self._max_waiting or self.estimated_wait > seconds:
                retry_after = max(math.ceil(self.estimated_wait), 1)
                raise TooBusy(
                    f"{len(self)} inputs wait, for about {self.estimated_wait:.1f} s, and {self._max_waiting} "
                    f"inputs may wait, these for {seconds:g} s; ask again in {retry_after} s, or send fewer at once",
                    retry_after=retry_after,
                )
            for index, item in enumerate(items):
                self._queue.put(_QueuedItem(request, index, item))
            self._changed.notify()
        return request

    def close(self) -> None:
        """Answer the items that wait, refuse new ones, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        busy = False
        while (batch := self._next_batch(wait=not busy)) or busy:
            if batch:
                self._answer(batch)
            busy = self._advance()

    def _answer(self, batch: Sequence[_QueuedItem[ItemT, ResultT]]) -> None:
        start, items = time.monotonic(), [queued.item for queued in batch]
        results: Sequence[ResultT | Deferred[ResultT] | Exception]
        try:
            results = self._work(items)
        except Exception as error:  # it cannot be put down to one item; the next batch has its own chance
            results = [error] * len(items)
        answered = zip(items, results, strict=True)
        cost = sum(item.cost for item, result in answered if not isinstance(result, Deferred))
        self._measure_speed(cost, time.monotonic() - start)
        for queued, result in zip(batch, results, strict=True):
            if isinstance(result, Deferred):
                self._deferred += 1
                result.start(partial(self._deliver, queued), queued.request.answers.done)
            else:
                queued.request.set_result(queued.index, result)

    def _deliver(self, queued: _QueuedItem[ItemT, ResultT], result: ResultT | Exception) -> None:
        self._deferred -= 1
        queued.request.set_result(queued.index, result)

    def _measure_speed(self, cost: int, seconds: float) -> None:
        """Update the moving average of the speed, by batches that are at least half full: small ones mislead."""
        if 2 * cost >= self._batch_cost:
            speed = cost / max(seconds, 1e-6)
            self._speed = speed if self._speed is None else RATE_SMOOTHING * speed + (1 - RATE_SMOOTHING) * self._speed

    def _next_batch(self, *, wait: bool) -> list[_QueuedItem[ItemT, ResultT]]:
        """Take a batch of the items that wait.

        Args:
            wait: Whether to wait for items; an empty list then means that the queue is closed and empty.
        """
        with self._changed:
            while True:
                self._changed.wait_for(lambda: not wait or self._closing or len(self._queue))
                batch, cost = [], 0
                while len(self._queue) and cost < self._batch_cost:
                    queued = self._queue.take()
                    if queued.deadline < time.monotonic():
                        queued.request.set_exception(
                            TooLate("the inputs waited for longer than they may; send fewer at once")
                        )
                    if not queued.request.answers.done():
                        batch.append(queued)
                        cost += queued.cost
                if batch or self._closing or not wait:
                    return batch
