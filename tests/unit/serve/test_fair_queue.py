"""Lanes are served in turn, each from its nearest deadline on."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from continual.serve.core.fair_queue import QUANTUM, FairQueue


@dataclass(frozen=True)
class Piece:
    lane: str
    cost: int
    deadline: float = 0.0
    number: int = 0


pieces = st.lists(
    st.builds(Piece, st.sampled_from("abcd"), st.integers(1, 5 * QUANTUM), st.integers(0, 3).map(float), st.integers()),
    max_size=60,
)


def taken(lanes: FairQueue[Piece], count: int) -> list[Piece]:
    return [lanes.take() for _ in range(count)]


@given(pieces)
def test_all_that_waits_is_taken_once_and_a_lane_keeps_its_order(work: list[Piece]) -> None:
    lanes: FairQueue[Piece] = FairQueue()
    for piece in work:
        lanes.put(piece)
    assert (len(lanes), lanes.cost) == (len(work), sum(piece.cost for piece in work))
    found = taken(lanes, len(work))
    for lane in "abcd":
        own = [piece for piece in work if piece.lane == lane]
        assert [piece for piece in found if piece.lane == lane] == sorted(own, key=lambda piece: piece.deadline)
    assert (len(lanes), lanes.cost) == (0, 0)
    with pytest.raises(LookupError):
        lanes.take()


@given(st.lists(st.integers(1, 3 * QUANTUM), min_size=2, max_size=5), st.integers(20, 200))
def test_lanes_that_wait_share_alike_whatever_their_pieces_cost(costs: list[int], count: int) -> None:
    lanes: FairQueue[Piece] = FairQueue()
    for lane, cost in enumerate(costs):
        for _ in range(count):
            lanes.put(Piece(str(lane), cost))
    spent = dict.fromkeys(map(str, range(len(costs))), 0)
    for piece in taken(lanes, count):  # no lane is empty by then
        spent[piece.lane] += piece.cost
    assert max(spent.values()) - min(spent.values()) <= 2 * QUANTUM + max(costs)


def test_a_flood_in_one_lane_keeps_no_other_waiting() -> None:
    lanes: FairQueue[Piece] = FairQueue()
    for number in range(1000):
        lanes.put(Piece("flood", 16, number=number))
    lanes.put(Piece("quiet", 16))
    assert "quiet" in {piece.lane for piece in taken(lanes, 2 * QUANTUM // 16)}
