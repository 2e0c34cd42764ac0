"""Rolling counter of the last minute's events per second, with a fake clock."""

from hypothesis import given
from hypothesis import strategies as st

from continual.serve.core.metrics import WINDOW_SECONDS, RollingCounter

steps = st.lists(st.tuples(st.floats(0, 40), st.integers(1, 9)), max_size=40)


@given(steps=steps, start=st.floats(0, 1e6), later=st.floats(0, 90))
def test_counts_are_those_of_the_last_full_seconds(steps: list[tuple[float, int]], start: float, later: float) -> None:
    now = start
    recent = RollingCounter(clock=lambda: now)
    added = []
    for wait, count in steps:
        now += wait
        recent.add(count)
        added.append((int(now), count))
    now += later
    expected = [
        sum(n for moment, n in added if moment == second) for second in range(int(now) - WINDOW_SECONDS, int(now))
    ]
    assert recent.by_second() == expected
    assert recent.uptime == now - start


def test_older_events_are_dropped() -> None:
    now = 0.0
    recent = RollingCounter(clock=lambda: now)
    for _ in range(10 * WINDOW_SECONDS):
        now += 1
        recent.add(1)
    assert len(recent._counts) <= WINDOW_SECONDS + 1
