"""Tasks that arrive one by one: who is next, what becomes of each, and what is left of it."""

from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from socket import gethostname
from threading import Thread

import pytest
from databases import registry_url
from hypothesis import given, settings
from hypothesis import strategies as st
from registry_cases import begin, learn, learn_in, make_registry
from sqlalchemy import event, insert, select, text

from registry import (
    ARRIVALS,
    ClaimLost,
    NotFound,
    NothingToDo,
    Registry,
    TaskNeeded,
    claim_arrival,
    dump,
    heartbeat,
    keep_checkpoint,
    last_checkpoint,
    purge_task,
    release,
    restore,
    this_holder,
    verify,
    waiting,
)
from registry.arrivals import first_free
from registry.base import now
from registry.claims import DEATHS
from registry.tables import Position
from tasks import InputError, Source, Stream, TaskSpec

DEAD = f"{gethostname()}:{2**22 + 1}:1"
FAR = "elsewhere:1:1"
HERE = this_holder()


def task(name: str, *, seed: int = 0, backbone: str | None = None) -> Stream:
    source = Source(path="json", data_files={"train": f"{name}.jsonl"})
    spec = TaskSpec(name=name, source=source, text="text", label="label")
    return Stream(name=name, seed=seed, backbone=backbone, tasks=(spec,), folder=Path("/data"))


@pytest.fixture
def registry(tmp_path: Path, database: str) -> Iterator[Registry]:
    with make_registry(tmp_path) as opened:
        yield opened


def take(registry: Registry, *, backbone: str = "tiny", holder: str = HERE) -> int | None:
    arrival = claim_arrival(registry, backbones=[backbone], holder=holder)
    return arrival and arrival.number


def fail(registry: Registry, number: int) -> None:
    with registry.unit() as unit:
        unit.fail(ARRIVALS, number, error="boom", holder=HERE)


def finish(registry: Registry, number: int, name: str, *, holder: str = HERE) -> str:
    with registry.unit() as unit:
        delta = learn_in(unit, registry, name)
        unit.finish(ARRIVALS, number, delta=delta, holder=holder)
        return delta


def states(registry: Registry) -> list[str]:
    return [row["state"] for row in registry.arrivals()]


# Whose turn it is


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


# What becomes of it


def test_what_is_cancelled_is_lost_to_its_holder_and_may_be_tried_again(registry: Registry) -> None:
    registry.submit(task("sst2"))
    assert take(registry) == 1
    keep = partial(keep_checkpoint, registry, ARRIVALS, number=1, holder=HERE, epoch=1)
    keep(data=b"state")
    registry.cancel_arrival(1)
    assert not heartbeat(registry, ARRIVALS, number=1, holder=HERE)
    with pytest.raises(ClaimLost):
        keep(data=b"late")
    with pytest.raises(ClaimLost):
        finish(registry, 1, "sst2")
    assert not release(registry, ARRIVALS, number=1, holder=HERE)
    assert registry.deltas() == []
    assert last_checkpoint(registry, ARRIVALS, number=1) is None
    assert take(registry) is None
    with pytest.raises(NothingToDo, match="arrival 1 is cancelled already"):
        registry.cancel_arrival(1)
    registry.retry_arrival(1)
    with pytest.raises(NothingToDo, match="arrival 1 is waiting"):
        registry.retry_arrival(1)
    assert take(registry) == 1
    with pytest.raises(NotFound, match="there is no arrival 7"):
        registry.cancel_arrival(7)


def test_pages_and_states(registry: Registry) -> None:
    for name in "abc":
        registry.submit(task(name))
    registry.cancel_arrival(2)
    assert [row["arrival"] for row in registry.arrivals(limit=2)] == [1, 2]
    assert [row["arrival"] for row in registry.arrivals(after=2)] == [3]
    assert [row["arrival"] for row in registry.arrivals(state="waiting", limit=1, after=1)] == [3]
    with pytest.raises(InputError, match="give one of waiting, held"):
        registry.arrivals(state="lost")


def test_what_cannot_arrive(registry: Registry) -> None:
    two = task("a").model_copy(update={"tasks": (*task("a").tasks, *task("b").tasks)})
    with pytest.raises(InputError, match="has 2 tasks"):
        registry.submit(two)
    with pytest.raises(InputError, match="out of range"):
        registry.submit(task("a"), priority=2**40)
    assert registry.arrivals() == []


def test_the_same_content_arrives_once_where_that_is_wanted(registry: Registry) -> None:
    assert [registry.submit(task("sst2", seed=seed), once=True) for seed in (0, 1, 0)] == [1, 2, 1]
    assert registry.submit(task("sst2")) == 3


# Beside streams


def test_streams_and_what_mlflow_is_told_know_nothing_of_it(registry: Registry) -> None:
    begin(registry, "trec")
    registry.submit(task("sst2"))
    take(registry)
    finish(registry, 1, "sst2")
    assert {message.message for message in waiting(registry) if message.subject != "core"} == {"delta", "champion"}
    assert registry.last_stream() == "core"
    assert [stream.name for stream in registry.streams()] == ["core"]
    assert registry.stream_of("sst2@1") is None
    with pytest.raises(NotFound, match="continual arrivals"):
        registry.stream(ARRIVALS)
    assert [(row["stream"], row["backbone"], row["learned"]) for row in registry.cost()] == [
        ("core", "tiny", 0),
        (ARRIVALS, None, 1),
    ]
    assert [row["stream"] for row in registry.dependents(task="sst2")] == [None]
    with registry.reading() as session:
        progress = session.execute(text("SELECT stream, learned, cancelled FROM stream_progress ORDER BY id")).all()
    assert [tuple(row) for row in progress] == [("core", 0, 0), (ARRIVALS, 1, 0)]
    assert verify(registry) == []


def test_a_purged_task_leaves_nothing_of_its_arrivals_and_does_not_come_back(registry: Registry) -> None:
    for seed in range(3):
        registry.submit(task("sst2", seed=seed), once=True)
    take(registry)
    finish(registry, 1, "sst2")
    assert take(registry) == 2
    with pytest.raises(TaskNeeded):
        purge_task(registry, "sst2")
    release(registry, ARRIVALS, number=2, holder=HERE)
    purge_task(registry, "sst2")
    with registry.reading() as session:
        assert session.scalars(select(Position.spec)).all() == [None] * 3
    assert states(registry) == ["learned", "cancelled", "cancelled"]
    assert [registry.submit(task("sst2", seed=seed), once=True) for seed in range(3)] == [1, 2, 3]
    with pytest.raises(NotFound, match="was purged: its file is not kept"):
        registry.retry_arrival(2)
    assert verify(registry) == []


def test_it_moves_to_another_database(tmp_path: Path, database: str) -> None:
    with Registry.open(f"sqlite:///{tmp_path}/old.db", f"{tmp_path}/old") as registry:
        for name in ("sst2", "trec"):
            registry.submit(task(name), priority=3)
        before = registry.arrivals()
        dump(registry, tmp_path / "archive.zip")
    restore(tmp_path / "archive.zip", registry_url(tmp_path), f"{tmp_path}/home/blobs")
    with make_registry(tmp_path) as registry:
        learn(registry, "mnli")
        assert registry.arrivals() == before
        assert registry.submit(task("mnli")) == 3
        arrival = claim_arrival(registry, backbones=[], holder=HERE)
        assert arrival is not None
        assert Stream.model_validate(arrival.spec) == task("sst2")
