"""Tasks that arrive one by one: who is next."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from threading import Thread

import pytest
from arrival_cases import DEAD, FAR, HERE, fail, finish, states, take, task
from hypothesis import given, settings
from hypothesis import strategies as st
from registry_cases import make_registry
from sqlalchemy import event, insert, select, text

from registry import (
    Registry,
)
from registry.arrivals import first_free
from registry.base import now
from registry.claims import DEATHS
from registry.tables import Position


@pytest.fixture
def registry(tmp_path: Path, database: str) -> Iterator[Registry]:
    with make_registry(tmp_path) as opened:
        yield opened


def test_the_highest_priority_is_next_then_the_earliest_and_what_failed_at_last_and_once(registry: Registry) -> None:
    submitted = {"a": 0, "b": 5, "c": 0, "d": 5}
    assert [registry.submit(task(name), priority=own) for name, own in submitted.items()] == [1, 2, 3, 4]
    found = []
    while number := take(registry):
        found.append(number)
        fail(registry, number)
    assert found == [2, 4, 1, 3, 2, 4, 1, 3]
    assert {(row["state"], row["attempts"], row["error"]) for row in registry.arrivals()} == {("failed", 2, "boom")}
    assert not registry.arrivals_left(["tiny"])
    registry.retry_arrival(3)
    assert registry.arrivals_left(["tiny"])
    assert (take(registry), take(registry)) == (3, None)


@settings(max_examples=15, deadline=None)
@given(submitted=st.lists(st.tuples(st.sampled_from("abc"), st.integers(-2, 2)), max_size=8))
def test_the_order_is_that_of_priority_and_arrival_and_of_one_task_always_that_of_arrival(
    submitted: list[tuple[str, int]],
) -> None:
    with Registry.open("sqlite://", "memory://arrivals") as registry:
        numbers = [registry.submit(task(name), priority=priority) for name, priority in submitted]
        found = []
        while number := take(registry):
            found.append(number)
            registry.cancel_arrival(number)
    lent = {
        number: max(priority for name, priority in submitted[number - 1 :] if name == submitted[number - 1][0])
        for number in numbers
    }
    assert found == sorted(numbers, key=lambda number: (-lent[number], number))
    for name in "abc":
        own = [number for number in found if submitted[number - 1][0] == name]
        assert own == sorted(own)


def test_of_one_task_the_later_waits_for_the_earlier(registry: Registry) -> None:
    for seed in range(2):
        registry.submit(task("sst2", seed=seed))
    assert (take(registry), take(registry)) == (1, None)
    assert registry.arrivals_left(["tiny"])
    registry.submit(task("trec"))
    assert take(registry) == 3
    assert finish(registry, 1, "sst2") == "sst2@1"
    assert take(registry) == 2
    assert finish(registry, 2, "sst2") == "sst2@2"


def test_two_watchers_at_the_same_moment_do_not_take_two_of_one_task(registry: Registry, database: str) -> None:
    if not database.startswith("postgresql"):
        pytest.skip("SQLite's writers queue")
    for seed in range(2):
        registry.submit(task("sst2", seed=seed))
    found: list[int | None] = []
    other = Thread(target=lambda: found.append(take(registry, holder=FAR)))
    with registry.unit() as unit:
        position = first_free(unit.session, ["tiny"])
        assert position is not None
        position.state, position.holder, position.lease_until = "held", HERE, now() + timedelta(hours=1)
        unit.session.flush()
        other.start()  # it sees 2 free and takes it, which the index refuses once 1 is known to be held
        _wait_until_it_waits(registry)
    other.join()
    assert found == [None]
    assert states(registry) == ["held", "waiting"]


def _wait_until_it_waits(registry: Registry) -> None:
    blocked = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    for _ in range(1000):
        with registry.reading() as session:
            if session.scalar(blocked):
                return
            session.execute(text("SELECT pg_sleep(0.01)"))
    raise AssertionError("nobody waits")


def test_an_arrival_for_a_backbone_is_left_to_those_who_have_it(registry: Registry, tmp_path: Path) -> None:
    registry.submit(task("sst2", backbone="large"), priority=9)
    registry.submit(task("trec"))
    registry.submit(task("mnli", backbone=str(tmp_path / ".." / tmp_path.name)))
    assert (take(registry), take(registry)) == (2, None)
    assert not registry.arrivals_left(["small"]) or states(registry)[1] == "held"
    assert take(registry, backbone="large") == 1
    assert take(registry, backbone=registry.arrivals()[2]["backbone"]) == 3


def test_who_is_dead_is_succeeded_but_not_for_ever(registry: Registry) -> None:
    registry.submit(task("sst2"))
    for _ in range(DEATHS):
        assert take(registry, holder=DEAD) == 1
    assert take(registry) is None
    (row,) = registry.arrivals()
    assert (row["state"], row["attempts"], row["holder"]) == ("failed", DEATHS, None)
    assert "died, 5 times" in row["error"]
    registry.retry_arrival(1)
    assert take(registry) == 1


OTHERS = [("waiting", "large"), ("failed", "large"), ("waiting", None)]


@pytest.mark.parametrize("others", [0, 1_000])
def test_the_next_is_found_by_the_index(registry: Registry, database: str, others: int) -> None:
    """Whatever waits for other backbones, and whatever was learned."""
    registry.submit(task("sst2"))
    with registry.unit() as unit:
        (first,) = unit.session.scalars(select(Position))
        same = {"stream_id": first.stream_id, "recipe": "", "submitted_at": now(), "retries": 1}
        rows = [
            same | {"number": 2 + n, "task_name": f"t{n}", "state": state, "backbone": backbone}
            for n, (state, backbone) in enumerate(OTHERS * others)
        ]
        if rows:
            unit.session.execute(insert(Position), rows)
    said: list[str] = []
    with registry.unit() as unit:
        if database.startswith("postgresql"):
            unit.session.execute(text("ANALYZE positions"))
        connection = unit.session.connection()
        explain = "EXPLAIN " if database.startswith("postgresql") else "EXPLAIN QUERY PLAN "

        def look(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
            if statement.startswith("SELECT") and "positions_1" in statement:
                said.extend(map(str, connection.exec_driver_sql(explain + statement, parameters)))  # type: ignore[arg-type]

        event.listen(connection, "before_cursor_execute", look)
        assert first_free(unit.session, ["tiny"]) is not None
    plan = "\n".join(said)
    assert plan
    if others or database.startswith("sqlite"):
        assert "ix_positions_free" in plan
        assert "Sort" not in plan
        assert "TEMP B-TREE" not in plan
