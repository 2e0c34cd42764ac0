"""Life cycle of arrived tasks: cancelling, retrying, duplicates, purging and archiving."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import select, text

from registry import (
    ARRIVAL_STREAM,
    ClaimLost,
    NotFound,
    NothingToDo,
    Registry,
    TaskNeeded,
    claim_arrival,
    dump_registry,
    find_damage,
    heartbeat,
    list_pending,
    load_checkpoint,
    purge_task,
    release,
    restore_registry,
    save_checkpoint,
)
from registry.schema.tables import Position
from tasks import InputError, Stream
from tests.helpers.arrivals import HERE, finish, states, take, task
from tests.helpers.databases import registry_url
from tests.helpers.registries import begin, learn, make_registry


@pytest.fixture
def registry(tmp_path: Path, database: str) -> Iterator[Registry]:
    with make_registry(tmp_path) as opened:
        yield opened


# Life cycle


def test_a_cancelled_arrival_is_lost_to_its_holder_and_can_be_retried(registry: Registry) -> None:
    registry.submit(task("sst2"))
    assert take(registry) == 1
    keep = partial(save_checkpoint, registry, ARRIVAL_STREAM, number=1, holder=HERE, epoch=1)
    keep(data=b"state")
    registry.cancel_arrival(1)
    assert not heartbeat(registry, ARRIVAL_STREAM, number=1, holder=HERE)
    with pytest.raises(ClaimLost):
        keep(data=b"late")
    with pytest.raises(ClaimLost):
        finish(registry, 1, "sst2")
    assert not release(registry, ARRIVAL_STREAM, number=1, holder=HERE)
    assert registry.deltas() == []
    assert load_checkpoint(registry, ARRIVAL_STREAM, number=1) is None
    assert take(registry) is None
    with pytest.raises(NothingToDo, match="arrival 1 is cancelled already"):
        registry.cancel_arrival(1)
    registry.retry_arrival(1)
    with pytest.raises(NothingToDo, match="arrival 1 is waiting"):
        registry.retry_arrival(1)
    assert take(registry) == 1
    with pytest.raises(NotFound, match="there is no arrival 7"):
        registry.cancel_arrival(7)


def test_listing_by_page_and_state(registry: Registry) -> None:
    for name in "abc":
        registry.submit(task(name))
    registry.cancel_arrival(2)
    assert [row["arrival"] for row in registry.arrivals(limit=2)] == [1, 2]
    assert [row["arrival"] for row in registry.arrivals(after=2)] == [3]
    assert [row["arrival"] for row in registry.arrivals(state="waiting", limit=1, after=1)] == [3]
    with pytest.raises(InputError, match="give one of waiting, held"):
        registry.arrivals(state="lost")


def test_invalid_tasks_are_refused(registry: Registry) -> None:
    two = task("a").model_copy(update={"tasks": (*task("a").tasks, *task("b").tasks)})
    with pytest.raises(InputError, match="has 2 tasks"):
        registry.submit(two)
    with pytest.raises(InputError, match="out of range"):
        registry.submit(task("a"), priority=2**40)
    assert registry.arrivals() == []


def test_a_task_submitted_once_is_deduplicated(registry: Registry) -> None:
    assert [registry.submit(task("sst2", seed=seed), once=True) for seed in (0, 1, 0)] == [1, 2, 1]
    assert registry.submit(task("sst2")) == 3


# Beside streams


def test_arrivals_appear_neither_in_streams_nor_in_mlflow(registry: Registry) -> None:
    begin(registry, "trec")
    registry.submit(task("sst2"))
    take(registry)
    finish(registry, 1, "sst2")
    assert {message.message for message in list_pending(registry) if message.subject != "core"} == {"delta", "champion"}
    assert registry.last_stream() == "core"
    assert [stream.name for stream in registry.streams()] == ["core"]
    assert registry.stream_of("sst2@1") is None
    with pytest.raises(NotFound, match="continual arrivals"):
        registry.stream(ARRIVAL_STREAM)
    assert [(row["stream"], row["backbone"], row["learned"]) for row in registry.cost()] == [
        ("core", "tiny", 0),
        (ARRIVAL_STREAM, None, 1),
    ]
    assert [row["stream"] for row in registry.dependents(task="sst2")] == [None]
    with registry.read_session() as session:
        progress = session.execute(text("SELECT stream, learned, cancelled FROM stream_progress ORDER BY id")).all()
    assert [tuple(row) for row in progress] == [("core", 0, 0), (ARRIVAL_STREAM, 1, 0)]
    assert find_damage(registry) == []


def test_a_purged_task_loses_its_arrivals(registry: Registry) -> None:
    for seed in range(3):
        registry.submit(task("sst2", seed=seed), once=True)
    take(registry)
    finish(registry, 1, "sst2")
    assert take(registry) == 2
    with pytest.raises(TaskNeeded):
        purge_task(registry, "sst2")
    release(registry, ARRIVAL_STREAM, number=2, holder=HERE)
    purge_task(registry, "sst2")
    with registry.read_session() as session:
        assert session.scalars(select(Position.spec)).all() == [None] * 3
    assert states(registry) == ["learned", "cancelled", "cancelled"]
    assert [registry.submit(task("sst2", seed=seed), once=True) for seed in range(3)] == [1, 2, 3]
    with pytest.raises(NotFound, match="was purged: its file is not kept"):
        registry.retry_arrival(2)
    assert find_damage(registry) == []


def test_arrivals_are_archived_between_databases(tmp_path: Path, database: str) -> None:
    with Registry.open(f"sqlite:///{tmp_path}/old.db", f"{tmp_path}/old") as registry:
        for name in ("sst2", "trec"):
            registry.submit(task(name), priority=3)
        before = registry.arrivals()
        dump_registry(registry, tmp_path / "archive.zip")
    restore_registry(tmp_path / "archive.zip", registry_url(tmp_path), f"{tmp_path}/home/blobs")
    with make_registry(tmp_path) as registry:
        learn(registry, "mnli")
        assert registry.arrivals() == before
        assert registry.submit(task("mnli")) == 3
        arrival = claim_arrival(registry, backbones=[], holder=HERE)
        assert arrival is not None
        assert Stream.model_validate(arrival.spec) == task("sst2")
