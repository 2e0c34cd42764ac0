"""Asks of many clients in batches: what waits is taken together, and while it is answered, the next batch gathers.

No batch waits to become full: alone, an ask is answered at once, and under load batches are as large as they may be.
"""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Generic, Protocol, TypeVar

from continual.errors import Closing, TooBusy, TooLate
from continual.serve.core.fair_queue import FairQueue

RATE_SMOOTHING = 0.2  # of the last batch in the mean speed


class BatchItem(Protocol):
    """What is asked of a batcher. lane: whose turn it waits for · cost: tokens, about."""

    @property
    def lane(self) -> str: ...
    @property
    def cost(self) -> int: ...


A = TypeVar("A", bound=BatchItem)
R = TypeVar("R")


class BatchRequest(Generic[A, R]):
    """Asks that came together and are answered together, in order, unless its `answers` are cancelled before."""

    def __init__(self, asks: Sequence[A], deadline: float) -> None:
        self.deadline, self.answers = deadline, Future[list[R]]()
        self._found: dict[int, R] = {}
        self._count = len(asks)

    def set_result(self, number: int, answer: R | Exception) -> None:
        """Take the answer to one of the asks; an exception is the answer to all."""
        if isinstance(answer, Exception):
            self.set_exception(answer)
            return
        self._found[number] = answer
        if len(self._found) == self._count:
            with suppress(InvalidStateError):  # cancelled meanwhile
                self.answers.set_result([self._found[i] for i in range(self._count)])

    def set_exception(self, error: Exception) -> None:
        """Say why there are no answers."""
        with suppress(InvalidStateError):
            self.answers.set_exception(error)


@dataclass(frozen=True)
class _Waiting(Generic[A, R]):
    job: BatchRequest[A, R]
    number: int
    ask: A

    @property
    def lane(self) -> str:
        return self.ask.lane

    @property
    def cost(self) -> int:
        return self.ask.cost

    @property
    def deadline(self) -> float:
        return self.job.deadline


class DynamicBatcher(Generic[A, R]):
    """One thread that answers batches of asks by `work`, which gives an answer or an exception for each, in order.

    size: what a batch may cost · most: asks that may wait.
    """

    def __init__(self, work: Callable[[Sequence[A]], Sequence[R | Exception]], *, size: int, most: int) -> None:
        self._work, self._size, self._most = work, size, most
        self._lanes: FairQueue[_Waiting[A, R]] = FairQueue()
        self._changed, self._closing = Condition(), False
        self._speed: float | None = None
        self._thread = Thread(target=self._run, name="answers", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """How many asks wait."""
        return len(self._lanes)

    @property
    def estimated_wait(self) -> float:
        """How long one more ask would wait, in seconds, by how fast it went until now; 0 as long as none had to."""
        return self._lanes.cost / self._speed if self._speed else 0.0

    def submit(self, asks: Sequence[A], *, seconds: float) -> BatchRequest[A, R]:
        """Let asks wait for at most so many seconds; all of them, or none.

        Raises TooBusy where too many wait already, or they would wait for too long; Closing after `close`.
        """
        job: BatchRequest[A, R] = BatchRequest(asks, time.monotonic() + seconds)
        with self._changed:
            if self._closing:
                raise Closing("the server is closing; ask another one, or this one when it is back")
            if len(self._lanes) + len(asks) > self._most or self.estimated_wait > seconds:
                again = max(math.ceil(self.estimated_wait), 1)
                raise TooBusy(
                    f"{len(self._lanes)} inputs wait, for about {self.estimated_wait:.1f} s, and {self._most} inputs "
                    f"may wait, these for {seconds:g} s; ask again in {again} s, or send fewer at once",
                    retry_after=again,
                )
            for number, ask in enumerate(asks):
                self._lanes.put(_Waiting(job, number, ask))
            self._changed.notify()
        return job

    def close(self) -> None:
        """Answer what waits, and nothing after that."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            began, asks = time.monotonic(), [waiting.ask for waiting in batch]
            try:
                answers = self._work(asks)
            except Exception as error:  # of no ask alone; the next batch has its own chance
                answers = [error] * len(asks)
            self._measure(sum(ask.cost for ask in asks), time.monotonic() - began)
            for waiting, answer in zip(batch, answers, strict=True):
                waiting.job.set_result(waiting.number, answer)

    def _measure(self, cost: int, seconds: float) -> None:
        """Mind how fast a batch was answered; a small one says little about how fast many are."""
        if 2 * cost >= self._size:
            speed = cost / max(seconds, 1e-6)
            self._speed = speed if self._speed is None else RATE_SMOOTHING * speed + (1 - RATE_SMOOTHING) * self._speed

    def _next(self) -> list[_Waiting[A, R]]:
        """What is to be answered next; nothing when that was all, and no more is to come."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._closing or len(self._lanes))
                batch, cost = [], 0
                while len(self._lanes) and cost < self._size:
                    waiting = self._lanes.take()
                    if waiting.deadline < time.monotonic():
                        waiting.job.set_exception(
                            TooLate("the inputs waited for longer than they may; send fewer at once")
                        )
                    if not waiting.job.answers.done():
                        batch.append(waiting)
                        cost += waiting.cost
                if batch or self._closing:
                    return batch
