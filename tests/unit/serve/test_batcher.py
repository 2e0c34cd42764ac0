"""Dynamic batching: items gather while a batch is answered, and an error fails only its own request."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from typing import Any

import pytest

from continual.errors import Closing, DeltaError, TooBusy, TooLate
from continual.serve.core.batcher import Deferred, DynamicBatcher
from continual.serve.core.champions import InferenceRequest


@dataclass(frozen=True)
class Number:
    value: int
    lane: str = "one"
    cost: int = 10


@dataclass
class Squares:
    """Answers with squares once `allowed` is set, and records the values of each batch."""

    allowed: Event = field(default_factory=Event)
    started: Event = field(default_factory=Event)
    batches: list[list[int]] = field(default_factory=list)

    def __call__(self, items: Sequence[Number]) -> list[int | Exception]:
        self.batches.append([item.value for item in items])
        self.started.set()
        assert self.allowed.wait(10)
        return [DeltaError("no square") if item.value < 0 else item.value**2 for item in items]


@pytest.fixture
def squares() -> Squares:
    return Squares()


Make = Callable[..., DynamicBatcher[Number, int]]


@pytest.fixture
def make(squares: Squares) -> Iterator[Make]:
    batchers: list[DynamicBatcher[Number, int]] = []

    def make_batcher(*, batch_cost: int = 1000, max_waiting: int = 1000) -> DynamicBatcher[Number, int]:
        batchers.append(DynamicBatcher(squares, batch_cost=batch_cost, max_waiting=max_waiting))
        return batchers[-1]

    yield make_batcher
    squares.allowed.set()
    for batcher in batchers:
        batcher.close()


def occupy(batcher: DynamicBatcher[Number, int], squares: Squares) -> None:
    """Keep the thread at work, so that later items have to wait."""
    batcher.submit([Number(0)], seconds=10)
    assert squares.started.wait(10)


def numbers(*values: int, lane: str = "one") -> list[Number]:
    return [Number(value, lane) for value in values]


def test_items_that_arrive_during_a_batch_form_the_next(make: Make, squares: Squares) -> None:
    batcher = make()
    occupy(batcher, squares)
    first, second = (batcher.submit(numbers(*values), seconds=10) for values in ((1, 2), (3,)))
    assert len(batcher) == 3
    squares.allowed.set()
    assert (first.answers.result(10), second.answers.result(10)) == ([1, 4], [9])
    assert squares.batches == [[0], [1, 2, 3]]


def test_a_long_texts_cost_is_computed_once() -> None:
    class Long(str):
        encoded = 0

        def encode(self, *args: str) -> bytes:
            Long.encoded += 1
            return super().encode(*args)

    batcher = DynamicBatcher[InferenceRequest, int](lambda items: [1 for _ in items], batch_cost=1000, max_waiting=1000)
    batcher.submit([InferenceRequest(Long("cat " * 1000))], seconds=10).answers.result(10)
    batcher.close()
    assert Long.encoded == 1


def test_a_batch_respects_its_maximum_cost(make: Make, squares: Squares) -> None:
    batcher = make(batch_cost=20)
    occupy(batcher, squares)
    request = batcher.submit(numbers(*range(5)), seconds=10)
    squares.allowed.set()
    assert request.answers.result(10) == [0, 1, 4, 9, 16]
    assert squares.batches[1:] == [[0, 1], [2, 3], [4]]


def test_an_error_fails_only_its_own_request(make: Make, squares: Squares) -> None:
    batcher = make()
    occupy(batcher, squares)
    bad, good = (batcher.submit(numbers(*values), seconds=10) for values in ((1, -1), (2,)))
    squares.allowed.set()
    assert good.answers.result(10) == [4]
    with pytest.raises(DeltaError, match="no square"):
        bad.answers.result(10)


def test_a_failing_batch_does_not_affect_the_next() -> None:
    def fails(items: Sequence[Number]) -> list[int | Exception]:
        if items[0].value == 0:
            raise RuntimeError("broken")
        return [1 for _ in items]

    batcher = DynamicBatcher[Number, int](fails, batch_cost=10, max_waiting=10)
    with pytest.raises(RuntimeError, match="broken"):
        batcher.submit(numbers(0), seconds=10).answers.result(10)
    assert batcher.submit(numbers(1), seconds=10).answers.result(10) == [1]
    batcher.close()


def test_cancelled_requests_are_not_answered(make: Make, squares: Squares) -> None:
    batcher = make()
    occupy(batcher, squares)
    cancelled, remaining = (batcher.submit(numbers(*values), seconds=10) for values in ((1, 2), (3,)))
    assert cancelled.answers.cancel()
    squares.allowed.set()
    assert remaining.answers.result(10) == [9]
    assert squares.batches == [[0], [3]]
    with pytest.raises(CancelledError):
        cancelled.answers.result(10)


def test_a_request_cancelled_during_its_batch_affects_no_other(make: Make, squares: Squares) -> None:
    batcher = make()
    request = batcher.submit(numbers(1), seconds=10)
    assert squares.started.wait(10)
    request.answers.cancel()
    squares.allowed.set()
    assert batcher.submit(numbers(2), seconds=10).answers.result(10) == [4]


def test_expired_requests_are_not_answered(make: Make, squares: Squares) -> None:
    batcher = make()
    occupy(batcher, squares)
    late, patient = (batcher.submit(numbers(value), seconds=seconds) for value, seconds in ((1, 0.01), (2, 10)))
    time.sleep(0.05)
    squares.allowed.set()
    with pytest.raises(TooLate):
        late.answers.result(10)
    assert patient.answers.result(10) == [4]
    assert squares.batches == [[0], [2]]


def test_a_lane_is_served_by_deadline(make: Make, squares: Squares) -> None:
    batcher = make(batch_cost=10)
    occupy(batcher, squares)
    slow, fast = (batcher.submit(numbers(value), seconds=seconds) for value, seconds in ((1, 100), (2, 10)))
    squares.allowed.set()
    assert (slow.answers.result(10), fast.answers.result(10)) == ([1], [4])
    assert squares.batches == [[0], [2], [1]]


def test_the_queue_has_a_maximum_length(make: Make, squares: Squares) -> None:
    batcher = make(max_waiting=3)
    occupy(batcher, squares)
    accepted = batcher.submit(numbers(1, 2), seconds=10)
    with pytest.raises(TooBusy, match="2 inputs wait") as refused:
        batcher.submit(numbers(3, 4), seconds=10)
    assert refused.value.retry_after >= 1
    assert len(batcher) == 2, "a request waits as a whole or not at all"
    squares.allowed.set()
    assert accepted.answers.result(10) == [1, 4]


def test_a_request_that_would_expire_is_refused_at_once() -> None:
    def slow(items: Sequence[Number]) -> list[int | Exception]:
        time.sleep(0.05 * len(items))
        return [0 for _ in items]

    batcher = DynamicBatcher[Number, int](slow, batch_cost=10, max_waiting=10_000)
    batcher.submit(numbers(0), seconds=10).answers.result(10)  # this measures the speed
    waiting = batcher.submit(numbers(*range(200)), seconds=100)
    with pytest.raises(TooBusy, match="may wait") as refused:
        batcher.submit(numbers(1), seconds=1)
    assert 5 <= refused.value.retry_after <= 20
    waiting.answers.cancel()
    batcher.close()


def test_accepted_requests_are_answered_on_close(make: Make, squares: Squares) -> None:
    batcher = make(batch_cost=10)
    occupy(batcher, squares)
    request = batcher.submit(numbers(1, 2, 3), seconds=10)
    squares.allowed.set()
    batcher.close()
    assert request.answers.result(0) == [1, 4, 9]
    with pytest.raises(Closing):
        batcher.submit(numbers(4), seconds=10)


class Countdowns:
    """Defers each positive number for so many steps, answers 0 and negative ones at once, and records the order."""

    def __init__(self) -> None:
        self.deferred: list[list[Any]] = []
        self.log: list[str] = []

    def __call__(self, items: Sequence[Number]) -> list[int | Deferred[int] | Exception]:
        self.log.append(f"batch {[item.value for item in items]}")
        return [Deferred(partial(self.start, item.value)) if item.value > 0 else item.value for item in items]

    def start(self, value: int, deliver: Callable[[int | Exception], None], is_cancelled: Callable[[], bool]) -> None:
        self.deferred.append([value, deliver, is_cancelled])

    def advance(self) -> bool:
        if self.deferred:
            self.log.append("step")
            time.sleep(0.01)
        for entry in [*self.deferred]:
            entry[0] -= 1
            if entry[0] == 0 or entry[2]():
                self.deferred.remove(entry)
                entry[1](100)
        return bool(self.deferred)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def countdowns() -> Iterator[tuple[Countdowns, DynamicBatcher[Number, int]]]:
    worker = Countdowns()
    batcher = DynamicBatcher[Number, int](worker, batch_cost=1000, max_waiting=5, advance=worker.advance)
    yield worker, batcher
    batcher.close()


def test_others_are_answered_between_the_steps_of_deferred_results(
    countdowns: tuple[Countdowns, DynamicBatcher[Number, int]],
) -> None:
    worker, batcher = countdowns
    slow = batcher.submit(numbers(30, 2), seconds=10)
    wait_for(lambda: "step" in worker.log)
    assert batcher.submit(numbers(-1), seconds=10).answers.result(10) == [-1]
    assert not slow.answers.done()
    assert slow.answers.result(10) == [100, 100]
    assert worker.log.index("batch [-1]") < len(worker.log) - 5
    assert len(batcher) == 0


def test_deferred_results_count_as_waiting(countdowns: tuple[Countdowns, DynamicBatcher[Number, int]]) -> None:
    _, batcher = countdowns
    slow = batcher.submit(numbers(1000, 1000, 1000), seconds=10)
    batcher.submit(numbers(0), seconds=10).answers.result(10)
    with pytest.raises(TooBusy, match="3 inputs wait"):
        batcher.submit(numbers(1, 1, 1), seconds=10)
    slow.answers.cancel()
    batcher.submit(numbers(0), seconds=10).answers.result(10)
    wait_for(lambda: len(batcher) == 0)


def test_deferred_results_are_delivered_on_close() -> None:
    worker = Countdowns()
    batcher = DynamicBatcher[Number, int](worker, batch_cost=1000, max_waiting=5, advance=worker.advance)
    slow = batcher.submit(numbers(20), seconds=10)
    batcher.close()
    assert slow.answers.result(0) == [100]
