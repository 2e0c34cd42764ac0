"""What is asked while a batch is answered makes up the next one; nobody waits for others' mistakes."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from threading import Event

import pytest

from continual.errors import Closing, DeltaError, TooBusy, TooLate
from continual.serve.core.batcher import DynamicBatcher
from continual.serve.core.champions import InferenceRequest


@dataclass(frozen=True)
class Number:
    value: int
    lane: str = "one"
    cost: int = 10


@dataclass
class Squares:
    """Answers with squares, as soon as it may; seen: the batches it was given."""

    may: Event = field(default_factory=Event)
    began: Event = field(default_factory=Event)
    seen: list[list[int]] = field(default_factory=list)

    def __call__(self, asks: Sequence[Number]) -> list[int | Exception]:
        self.seen.append([ask.value for ask in asks])
        self.began.set()
        assert self.may.wait(10)
        return [DeltaError("no square") if ask.value < 0 else ask.value**2 for ask in asks]


@pytest.fixture
def squares() -> Squares:
    return Squares()


Make = Callable[..., DynamicBatcher[Number, int]]


@pytest.fixture
def make(squares: Squares) -> Iterator[Make]:
    made: list[DynamicBatcher[Number, int]] = []

    def batcher(*, batch_cost: int = 1000, max_waiting: int = 1000) -> DynamicBatcher[Number, int]:
        made.append(DynamicBatcher(squares, batch_cost=batch_cost, max_waiting=max_waiting))
        return made[-1]

    yield batcher
    squares.may.set()
    for own in made:
        own.close()


def begun(batcher: DynamicBatcher[Number, int], squares: Squares) -> None:
    """Have the thread at work, so that what comes now has to wait."""
    batcher.submit([Number(0)], seconds=10)
    assert squares.began.wait(10)


def numbers(*values: int, lane: str = "one") -> list[Number]:
    return [Number(value, lane) for value in values]


def test_what_comes_while_a_batch_is_answered_makes_up_the_next(make: Make, squares: Squares) -> None:
    batcher = make()
    begun(batcher, squares)
    first, second = (batcher.submit(numbers(*values), seconds=10) for values in ((1, 2), (3,)))
    assert len(batcher) == 3
    squares.may.set()
    assert (first.answers.result(10), second.answers.result(10)) == ([1, 4], [9])
    assert squares.seen == [[0], [1, 2, 3]]


def test_what_a_long_text_costs_is_found_out_once() -> None:
    class Long(str):
        encoded = 0

        def encode(self, *args: str) -> bytes:  # type: ignore[override]
            Long.encoded += 1
            return super().encode(*args)

    batcher = DynamicBatcher[InferenceRequest, int](lambda asks: [1 for _ in asks], batch_cost=1000, max_waiting=1000)
    batcher.submit([InferenceRequest(Long("cat " * 1000))], seconds=10).answers.result(10)
    batcher.close()
    assert Long.encoded == 1


def test_a_batch_is_no_larger_than_it_may_be(make: Make, squares: Squares) -> None:
    batcher = make(batch_cost=20)
    begun(batcher, squares)
    job = batcher.submit(numbers(*range(5)), seconds=10)
    squares.may.set()
    assert job.answers.result(10) == [0, 1, 4, 9, 16]
    assert squares.seen[1:] == [[0, 1], [2, 3], [4]]


def test_a_mistake_fails_its_own_job(make: Make, squares: Squares) -> None:
    batcher = make()
    begun(batcher, squares)
    bad, good = (batcher.submit(numbers(*values), seconds=10) for values in ((1, -1), (2,)))
    squares.may.set()
    assert good.answers.result(10) == [4]
    with pytest.raises(DeltaError, match="no square"):
        bad.answers.result(10)


def test_work_that_fails_altogether_fails_its_batch_and_the_next_is_answered() -> None:
    def fails(asks: Sequence[Number]) -> list[int | Exception]:
        if asks[0].value == 0:
            raise RuntimeError("broken")
        return [1 for _ in asks]

    batcher = DynamicBatcher[Number, int](fails, batch_cost=10, max_waiting=10)
    with pytest.raises(RuntimeError, match="broken"):
        batcher.submit(numbers(0), seconds=10).answers.result(10)
    assert batcher.submit(numbers(1), seconds=10).answers.result(10) == [1]
    batcher.close()


def test_what_nobody_waits_for_any_more_is_not_answered(make: Make, squares: Squares) -> None:
    batcher = make()
    begun(batcher, squares)
    gone, stays = (batcher.submit(numbers(*values), seconds=10) for values in ((1, 2), (3,)))
    assert gone.answers.cancel()
    squares.may.set()
    assert stays.answers.result(10) == [9]
    assert squares.seen == [[0], [3]]
    with pytest.raises(CancelledError):
        gone.answers.result(10)


def test_a_client_that_leaves_while_it_is_answered_disturbs_nobody(make: Make, squares: Squares) -> None:
    batcher = make()
    job = batcher.submit(numbers(1), seconds=10)
    assert squares.began.wait(10)
    job.answers.cancel()
    squares.may.set()
    assert batcher.submit(numbers(2), seconds=10).answers.result(10) == [4]


def test_what_waited_for_too_long_is_not_answered(make: Make, squares: Squares) -> None:
    batcher = make()
    begun(batcher, squares)
    late, patient = (batcher.submit(numbers(value), seconds=seconds) for value, seconds in ((1, 0.01), (2, 10)))
    time.sleep(0.05)
    squares.may.set()
    with pytest.raises(TooLate):
        late.answers.result(10)
    assert patient.answers.result(10) == [4]
    assert squares.seen == [[0], [2]]


def test_of_one_lane_the_nearest_deadline_comes_first(make: Make, squares: Squares) -> None:
    batcher = make(batch_cost=10)
    begun(batcher, squares)
    slow, fast = (batcher.submit(numbers(value), seconds=seconds) for value, seconds in ((1, 100), (2, 10)))
    squares.may.set()
    assert (slow.answers.result(10), fast.answers.result(10)) == ([1], [4])
    assert squares.seen == [[0], [2], [1]]


def test_no_more_may_wait_than_is_allowed(make: Make, squares: Squares) -> None:
    batcher = make(max_waiting=3)
    begun(batcher, squares)
    kept = batcher.submit(numbers(1, 2), seconds=10)
    with pytest.raises(TooBusy, match="2 inputs wait") as refused:
        batcher.submit(numbers(3, 4), seconds=10)
    assert refused.value.retry_after >= 1
    assert len(batcher) == 2, "all of a job waits, or nothing"
    squares.may.set()
    assert kept.answers.result(10) == [1, 4]


def test_what_would_wait_for_too_long_is_refused_at_once() -> None:
    def slow(asks: Sequence[Number]) -> list[int | Exception]:
        time.sleep(0.05 * len(asks))
        return [0 for _ in asks]

    batcher = DynamicBatcher[Number, int](slow, batch_cost=10, max_waiting=10_000)
    batcher.submit(numbers(0), seconds=10).answers.result(10)  # from which the speed is known
    waiting = batcher.submit(numbers(*range(200)), seconds=100)
    with pytest.raises(TooBusy, match="may wait") as refused:
        batcher.submit(numbers(1), seconds=1)
    assert 5 <= refused.value.retry_after <= 20
    waiting.answers.cancel()
    batcher.close()


def test_what_was_accepted_is_finished(make: Make, squares: Squares) -> None:
    batcher = make(batch_cost=10)
    begun(batcher, squares)
    job = batcher.submit(numbers(1, 2, 3), seconds=10)
    squares.may.set()
    batcher.close()
    assert job.answers.result(0) == [1, 4, 9]
    with pytest.raises(Closing):
        batcher.submit(numbers(4), seconds=10)
