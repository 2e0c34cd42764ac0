"""Order of arrived tasks: priorities, retries, holders and concurrent claims."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, insert, select, text

from registry import ARRIVAL_STREAM, Registry, normalized_backbone_name, release, save_checkpoint
from registry.operations.claims import MAX_CONSECUTIVE_DEATHS
from registry.reads.mapping import ListingRow
from registry.schema.base import now
from registry.schema.tables import Position
from registry.writes.arrivals import next_for_update
from tests.helpers.arrivals import DEAD, FAR, HERE, fail, finish, states, take, task
from tests.helpers.registries import make_registry


@pytest.fixture
def registry(tmp_path: Path, database: str) -> Iterator[Registry]:
    with make_registry(tmp_path) as opened:
        yield opened


def test_claims_follow_priority_then_age_and_failures_come_last(registry: Registry) -> None:
    submitted = {"a": 0, "b": 5, "c": 0, "d": 5}
    assert [registry.submit(task(name), priority=priority) for name, priority in submitted.items()] == [1, 2, 3, 4]
    order = []
    while number := take(registry):
        order.append(number)
        fail(registry, number)
    assert order == [2, 4, 1, 3, 2, 4, 1, 3]
    assert {(row["state"], row["attempts"], row["error"]) for row in registry.arrivals()} == {("failed", 2, "boom")}
    assert not registry.arrivals_left(["tiny"])
    registry.retry_arrival(3)
    assert registry.arrivals_left(["tiny"])
    assert (take(registry), take(registry)) == (3, None)


def test_a_cancelled_arrival_leaves_no_checkpoint(registry: Registry) -> None:
    registry.submit(task("a"))
    number = take(registry)
    assert number
    save_checkpoint(registry, ARRIVAL_STREAM, number=number, holder=HERE, epoch=1, data=b"state")
    registry.cancel_arrival(number)
    assert [*registry.blobs.iterate()] == []


@settings(max_examples=15)
@given(submitted=st.lists(st.tuples(st.sampled_from("abc"), st.integers(-2, 2)), max_size=8))
def test_arrivals_of_one_task_are_claimed_in_order_of_arrival(
    submitted: list[tuple[str, int]],
) -> None:
    with Registry.open("sqlite://", "memory://arrivals") as registry:
        numbers = [registry.submit(task(name), priority=priority) for name, priority in submitted]
        order = []
        while number := take(registry):
            order.append(number)
            registry.cancel_arrival(number)
    lent = {
        number: max(priority for name, priority in submitted[number - 1 :] if name == submitted[number - 1][0])
        for number in numbers
    }
    assert order == sorted(numbers, key=lambda number: (-lent[number], number))
    for name in "abc":
        of_task = [number for number in order if submitted[number - 1][0] == name]
        assert of_task == sorted(of_task)


DONE = ("given back", "failed", "cancelled", "retried")
STEPS = st.one_of(
    st.tuples(st.sampled_from("ab"), st.integers(-2, 2)), st.just("take"), st.tuples(st.sampled_from(DONE), st.just(0))
)


@settings(max_examples=20)
@given(steps=st.lists(STEPS, max_size=12))
@example([("a", 0), "take", ("a", 2), ("given back", 0), "take"])
@example([("a", 0), ("a", 2), ("cancelled", 0), ("retried", 0), "take"])
@example([("a", -1), ("cancelled", 0), ("a", 0), ("retried", 0), "take"])
@example([("a", 0), "take", ("failed", 0), ("a", 0), "take", ("cancelled", 0), "take"])
@example([("a", 0), "take", ("a", 0), ("failed", 0), "take", ("cancelled", 0), "take"])
def test_no_arrival_starts_before_an_earlier_one_of_its_task(steps: list[Any]) -> None:
    with Registry.open("sqlite://", "memory://arrivals") as registry:
        for step in steps:
            before = registry.arrivals()
            if step == "take":
                _is_next(before, take(registry))
            elif step[0] in DONE:
                _becomes(registry, before, step[0])
            else:
                registry.submit(task(step[0]), priority=step[1])


def _is_next(rows: list[ListingRow], claimed: int | None) -> None:
    held = {row["task"] for row in rows if row["state"] == "held"}
    free = [row for row in rows if row["state"] == "waiting" and row["task"] not in held]
    first = min(free, key=lambda row: (-row["priority"], row["arrival"]), default=None)
    if first is not None:
        assert claimed == first["arrival"]
        assert not [row for row in free if row["task"] == first["task"] and row["arrival"] < first["arrival"]]
    elif claimed is not None:
        (again,) = [row for row in rows if row["arrival"] == claimed]
        assert (again["state"], again["attempts"]) == ("failed", 1)
        assert not [row for row in rows if row["task"] == again["task"] and row["arrival"] > claimed]


def _becomes(registry: Registry, rows: list[ListingRow], state: str) -> None:
    """Move the first arrival for which this is possible into the state."""
    allowed = {"cancelled": ("waiting", "held"), "retried": ("failed", "cancelled")}.get(state, ("held",))
    number = next((row["arrival"] for row in rows if row["state"] in allowed), None)
    if number is None:
        return
    if state == "given back":
        release(registry, ARRIVAL_STREAM, number=number, holder=HERE)
    elif state == "failed":
        fail(registry, number)
    elif state == "cancelled":
        registry.cancel_arrival(number)
    else:
        registry.retry_arrival(number)


def test_a_later_arrival_of_a_task_waits_for_the_earlier(registry: Registry) -> None:
    for seed in range(2):
        registry.submit(task("sst2", seed=seed))
    assert (take(registry), take(registry)) == (1, None)
    assert registry.arrivals_left(["tiny"])
    registry.submit(task("trec"))
    assert take(registry) == 3
    assert finish(registry, 1, "sst2") == "sst2@1"
    assert take(registry) == 2
    assert finish(registry, 2, "sst2") == "sst2@2"


def test_concurrent_workers_do_not_claim_two_arrivals_of_one_task(registry: Registry, database: str) -> None:
    if not database.startswith("postgresql"):
        pytest.skip("SQLite's writers queue")
    for backbone in ("large", None):
        registry.submit(task("sst2", backbone=backbone))
    claimed: list[int | None] = []
    thread = Thread(target=lambda: claimed.append(take(registry, holder=FAR)))
    with registry.unit_of_work() as unit:
        position = next_for_update(unit.session, ["large"])
        assert position is not None
        position.state, position.holder, position.lease_until = "held", HERE, now() + timedelta(hours=1)
        unit.session.flush()
        thread.start()  # it sees 2 free alone and takes it, which the index refuses once 1 is known to be held
        _wait_until_it_waits(registry)
    thread.join()
    assert claimed == [None]
    assert states(registry) == ["held", "waiting"]


def test_a_locked_arrival_and_its_task_are_skipped(registry: Registry, database: str) -> None:
    if not database.startswith("postgresql"):
        pytest.skip("SQLite locks no rows: its writers queue")
    for name, priority, backbone in (("mnli", 1, None), ("sst2", 5, "tiny"), ("sst2", 5, None), ("trec", 0, None)):
        registry.submit(task(name, backbone=backbone), priority=priority)
    with registry.unit_of_work() as unit:
        position = next_for_update(unit.session, ["tiny"])
        assert position is not None
        assert position.number == 2
        assert [take(registry, holder=FAR) for _ in range(3)] == [1, 4, None], "1 was looked at, and is not locked"
    assert [take(registry) for _ in range(2)] == [2, None]


def _wait_until_it_waits(registry: Registry) -> None:
    blocked = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    for _ in range(1000):
        with registry.read_session() as session:
            if session.scalar(blocked):
                return
            session.execute(text("SELECT pg_sleep(0.01)"))
    raise AssertionError("nobody waits")


def test_an_arrival_for_a_backbone_is_claimed_by_workers_with_it(registry: Registry, tmp_path: Path) -> None:
    registry.submit(task("sst2", backbone="large"), priority=9)
    registry.submit(task("trec"))
    registry.submit(task("mnli", backbone=str(tmp_path / ".." / tmp_path.name)))
    assert (take(registry), take(registry)) == (2, None)
    assert not registry.arrivals_left(["small"]) or states(registry)[1] == "held"
    assert take(registry, backbone="large") == 1
    assert take(registry, backbone=registry.arrivals()[2]["backbone"]) == 3


def test_a_dead_holder_is_succeeded_a_limited_number_of_times(registry: Registry) -> None:
    registry.submit(task("sst2"))
    for _ in range(MAX_CONSECUTIVE_DEATHS):
        assert take(registry, holder=DEAD) == 1
    assert take(registry) is None
    (row,) = registry.arrivals()
    assert (row["state"], row["attempts"], row["holder"]) == ("failed", MAX_CONSECUTIVE_DEATHS, None)
    assert "died 5 times" in row["error"]
    assert "`continual arrivals retry 1`" in row["error"]
    registry.retry_arrival(1)
    assert take(registry) == 1


@pytest.mark.parametrize("between", ["given back", "checkpoint"])
def test_only_consecutive_deaths_are_counted(registry: Registry, between: str) -> None:
    registry.submit(task("sst2"))
    for epoch in range(MAX_CONSECUTIVE_DEATHS + 1):
        assert take(registry) == 1
        if between == "checkpoint":
            save_checkpoint(registry, ARRIVAL_STREAM, number=1, holder=HERE, epoch=epoch, data=b"state")
        release(registry, ARRIVAL_STREAM, number=1, holder=HERE)
        assert registry.arrivals()[0]["attempts"] == 0
    for _ in range(MAX_CONSECUTIVE_DEATHS):
        assert take(registry, holder=DEAD) == 1
    if between == "checkpoint":
        save_checkpoint(registry, ARRIVAL_STREAM, number=1, holder=DEAD, epoch=MAX_CONSECUTIVE_DEATHS, data=b"further")
        for _ in range(MAX_CONSECUTIVE_DEATHS - 1):
            assert take(registry, holder=DEAD) == 1
    assert take(registry) is None


def test_folder_names_that_end_in_bit_are_no_quantisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("rabbit", "llama-8bit", "a@b"):
        (tmp_path / name).mkdir()
        assert normalized_backbone_name(name) == f"{tmp_path}/{name}"
        assert normalized_backbone_name(f"{name}@4bit") == f"{tmp_path}/{name}@4bit"
    assert normalized_backbone_name("rabbit@2bit") == "rabbit@2bit"
    assert normalized_backbone_name("minilm@8bit") == "minilm@8bit"


OTHERS = [("waiting", "large"), ("failed", "large"), ("waiting", None)]


@pytest.mark.parametrize("other_tasks", [0, 1_000])
def test_the_next_arrival_is_claimed_by_index(registry: Registry, database: str, other_tasks: int) -> None:
    """With any number of tasks that wait for other backbones or are learned."""
    registry.submit(task("sst2"))
    with registry.unit_of_work() as unit:
        (first,) = unit.session.scalars(select(Position))
        same = {"stream_id": first.stream_id, "recipe": "", "submitted_at": now(), "retries": 1}
        rows = [
            same | {"number": 2 + n, "task_name": f"t{n}", "state": state, "backbone": backbone}
            for n, (state, backbone) in enumerate(OTHERS * other_tasks)
        ]
        if rows:
            unit.session.execute(insert(Position), rows)
    plans: list[str] = []
    with registry.unit_of_work() as unit:
        if database.startswith("postgresql"):
            unit.session.execute(text("ANALYZE positions"))
        connection = unit.session.connection()
        explain = "EXPLAIN " if database.startswith("postgresql") else "EXPLAIN QUERY PLAN "

        def look(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
            if statement.startswith("SELECT") and "positions_1" in statement:
                plans.extend(map(str, connection.exec_driver_sql(explain + statement, parameters)))  # type: ignore[arg-type]

        event.listen(connection, "before_cursor_execute", look)
        assert next_for_update(unit.session, ["tiny"]) is not None
    plan = "\n".join(plans)
    assert plan
    if other_tasks or database.startswith("sqlite"):
        assert "ix_positions_free" in plan
        assert "Sort" not in plan
        assert "TEMP B-TREE" not in plan
