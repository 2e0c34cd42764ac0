"""The fair queue serves lanes in turn, and each lane by deadline."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from continual.serve.core.fair_queue import QUANTUM, FairQueue


@dataclass(frozen=True)
class Item:
    lane: str
    cost: int
    deadline: float = 0.0
    number: int = 0


item_lists = st.lists(
    st.builds(Item, st.sampled_from("abcd"), st.integers(1, 5 * QUANTUM), st.integers(0, 3).map(float), st.integers()),
    max_size=60,
)


def take_many(queue: FairQueue[Item], count: int) -> list[Item]:
    return [queue.take() for _ in range(count)]


@given(item_lists)
def test_each_item_is_taken_once_in_its_lanes_order(items: list[Item]) -> None:
    queue: FairQueue[Item] = FairQueue()
    for item in items:
        queue.put(item)
    assert (len(queue), queue.cost) == (len(items), sum(item.cost for item in items))
    order = take_many(queue, len(items))
    for lane in "abcd":
        expected = [item for item in items if item.lane == lane]
        assert [item for item in order if item.lane == lane] == sorted(expected, key=lambda item: item.deadline)
    assert (len(queue), queue.cost) == (0, 0)
    with pytest.raises(LookupError):
        queue.take()


@given(st.lists(st.integers(1, 3 * QUANTUM), min_size=2, max_size=5), st.integers(20, 200))
def test_waiting_lanes_share_equally_by_cost(costs: list[int], count: int) -> None:
    queue: FairQueue[Item] = FairQueue()
    for lane, cost in enumerate(costs):
        for _ in range(count):
            queue.put(Item(str(lane), cost))
    cost_by_lane = dict.fromkeys(map(str, range(len(costs))), 0)
    for item in take_many(queue, count):  # no lane is empty by then
        cost_by_lane[item.lane] += item.cost
    assert max(cost_by_lane.values()) - min(cost_by_lane.values()) <= 2 * QUANTUM + max(costs)


def test_a_flooded_lane_delays_no_other() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(1000):
        queue.put(Item("flood", 16, number=number))
    queue.put(Item("quiet", 16))
    assert "quiet" in {item.lane for item in take_many(queue, 2 * QUANTUM // 16)}
