"""Claims of positions: of several controllers on one stream, exactly one learns a position."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from socket import gethostname
from typing import Any

import pytest
from sqlalchemy import select

from registry import (
    BlobError,
    BlobStore,
    ClaimLost,
    NotFound,
    Registry,
    StoredBlob,
    checkpoint_epoch,
    claim_next,
    collect_garbage,
    current_process_id,
    find_damage,
    heartbeat,
    hold_claim,
    load_checkpoint,
    release,
    release_claims_of,
    save_checkpoint,
)
from registry.holders import is_alive
from registry.reads.lookups import position_row
from registry.schema.base import database_now, now
from registry.schema.tables import Position
from tests.helpers.claims import claim_position
from tests.helpers.fresh_processes import fresh_processes
from tests.helpers.registries import accuracy, begin, claim_all, claim_and_die, claim_and_stay, learn, make_registry

pytestmark = pytest.mark.usefixtures("database")

FAR = "elsewhere:1:1"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with make_registry(tmp_path) as opened:
        begin(opened, "sst2")
        yield opened


def silence(registry: Registry, seconds: int) -> None:
    """Move the leases back, as if the holder had sent no heartbeat for so many seconds."""
    with registry.unit_of_work() as unit:
        for position in unit.session.scalars(select(Position).where(Position.lease_until.is_not(None))):
            assert position.lease_until is not None
            position.lease_until = position.lease_until - timedelta(seconds=seconds)


def test_one_of_two_processes_wins_a_position(tmp_path: Path, registry: Registry) -> None:
    processes = fresh_processes()
    start, won = processes.Barrier(2), processes.Queue()
    children = [processes.Process(target=claim_and_stay, args=(tmp_path, start, won)) for _ in range(2)]
    for child in children:
        child.start()
    assert sorted(won.get(timeout=60) for _ in children) == [False, True]
    for child in children:
        child.join()


def test_a_dead_process_of_this_host_is_succeeded_at_once(tmp_path: Path, registry: Registry) -> None:
    child = fresh_processes().Process(target=claim_and_die, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert registry.stream("core").positions[0].state == "held"
    assert claim_position(registry, "core", number=0, holder=current_process_id())


def test_a_reused_process_number_is_not_the_holder() -> None:
    host, pid, start = current_process_id().rsplit(":", 2)
    assert not is_alive(f"{host}:{pid}:{int(start or 0) + 1}", lease_valid=True) or not start
    assert not is_alive(f"{gethostname()}:{2**22 + 1}:1", lease_valid=True)


def test_a_processs_earlier_claim_expires_with_its_lease() -> None:
    """A claim that could not be released, as the database was away, must not block the process itself."""
    assert is_alive(current_process_id(), lease_valid=True)
    assert not is_alive(current_process_id(), lease_valid=False)


def test_another_host_is_judged_by_its_heartbeat(registry: Registry) -> None:
    assert claim_position(registry, "core", number=0, holder=FAR)
    silence(registry, 110)
    assert not claim_position(registry, "core", number=0, holder=current_process_id())
    silence(registry, 130)
    assert claim_position(registry, "core", number=0, holder=current_process_id())
    assert not heartbeat(registry, "core", number=0, holder=FAR)


def test_a_former_holder_cannot_finish_a_position(registry: Registry) -> None:
    learn(registry, "sst2")
    claim_position(registry, "core", number=0, holder=current_process_id())
    with pytest.raises(ClaimLost, match="no longer by elsewhere"), registry.unit_of_work() as unit:
        unit.mark_learned("core", 0, delta="sst2@1", holder=FAR)


def test_failed_and_released_positions_can_be_claimed_and_learned_ones_not(registry: Registry) -> None:
    learn(registry, "sst2")
    with registry.unit_of_work() as unit:
        unit.mark_failed("core", 0, error="boom")
    assert claim_position(registry, "core", number=0, holder=FAR)
    assert not release(registry, "core", number=0, holder=current_process_id())
    assert release(registry, "core", number=0, holder=FAR)
    assert claim_position(registry, "core", number=0, holder=current_process_id())
    with registry.unit_of_work() as unit:
        unit.mark_learned("core", 0, delta="sst2@1", holder=current_process_id())
    assert not claim_position(registry, "core", number=0, holder=current_process_id())


def test_only_a_dead_holders_positions_wait_again(tmp_path: Path) -> None:
    with make_registry(tmp_path) as registry:
        begin(registry, "sst2", "trec", "mnli")
        for number, holder in enumerate((FAR, current_process_id(), FAR)):
            assert claim_position(registry, "core", number=number, holder=holder)
        assert release_claims_of(registry, "core", holder=FAR) == [0, 2]
        positions = [(p.state, p.holder, p.attempts) for p in registry.positions("core")]
        assert positions == [("waiting", None, 1), ("held", current_process_id(), 1), ("waiting", None, 1)]
        assert release_claims_of(registry, "core", holder=FAR) == []


def test_heartbeats_are_sent_while_a_position_is_held(registry: Registry) -> None:
    holder = current_process_id()
    claim_position(registry, "core", number=0, holder=holder)
    silence(registry, 1000)
    with hold_claim(registry, "core", number=0, holder=holder, interval=0.01):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and _silent(registry):
            time.sleep(0.01)
    assert not _silent(registry)
    assert registry.stream("core").positions[0].state == "held"


def _silent(registry: Registry) -> bool:
    with registry.read_session() as session:
        lease_until = session.scalars(select(Position.lease_until)).one()
        assert lease_until is not None
        return lease_until < now()


# Any number of controllers


ANY = dict.fromkeys(range(3), 2)  # every position, with at most two attempts each


def test_the_next_free_position_is_claimed(tmp_path: Path) -> None:
    with make_registry(tmp_path) as registry:
        begin(registry, "sst2", "trec", "mnli")
        assert [claim_next(registry, "core", max_attempts=ANY, holder=FAR) for _ in range(4)] == [0, 1, 2, None]
        assert release(registry, "core", number=1, holder=FAR)
        assert claim_next(registry, "core", max_attempts={0: 2, 2: 2}, holder=FAR) is None, "1 is not asked for"
        assert claim_next(registry, "core", max_attempts=ANY, holder=FAR) == 1
        silence(registry, 130)
        assert claim_next(registry, "core", max_attempts=ANY, holder=current_process_id()) == 0, (
            "its holder has been silent"
        )
        with pytest.raises(NotFound):
            claim_next(registry, "cora", max_attempts=ANY, holder=FAR)


def test_failed_positions_come_last_a_limited_number_of_times(tmp_path: Path) -> None:
    with make_registry(tmp_path) as registry:
        begin(registry, "sst2", "trec")
        order = []
        while (number := claim_next(registry, "core", max_attempts=ANY, holder=FAR)) is not None:
            order.append(number)
            with registry.unit_of_work() as unit:
                unit.mark_failed("core", number, error="boom", holder=FAR)
        assert order == [0, 1, 0, 1]
        assert [(p.state, p.attempts) for p in registry.stream("core").positions] == [("failed", 2)] * 2


def test_a_locked_position_does_not_block_other_claims(tmp_path: Path, database: str) -> None:
    if not database.startswith("postgresql"):
        pytest.skip("SQLite locks no rows: its writers queue")
    with make_registry(tmp_path) as registry:
        begin(registry, "sst2", "trec")
        with registry.unit_of_work() as unit:
            position_row(unit.session, "core", number=0)  # locked until the unit ends
            assert claim_next(registry, "core", max_attempts=ANY, holder=FAR) == 1


def test_processes_share_a_stream_without_duplicates(tmp_path: Path) -> None:
    with make_registry(tmp_path) as registry:
        begin(registry, *(f"task{number}" for number in range(12)))
        processes = fresh_processes()
        start, won = processes.Barrier(3), processes.Queue()
        children = [processes.Process(target=claim_all, args=(tmp_path, start, won, 12)) for _ in range(3)]
        for child in children:
            child.start()
        claimed = [won.get(timeout=60) for _ in children]
        for child in children:
            child.join()
        assert sorted(number for numbers in claimed for number in numbers) == list(range(12))


# Another host's clock


def test_wrong_host_clocks_have_no_effect(registry: Registry, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases use the database's clock: the holder's host is an hour behind, this one an hour ahead."""
    for holder, hours in ((FAR, -1), (current_process_id(), 1)):

        class WrongClock(datetime):
            offset = timedelta(hours=hours)

            @classmethod
            def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
                return datetime.now(tz) + cls.offset

        monkeypatch.setattr("registry.schema.base.datetime", WrongClock)
        monkeypatch.setattr("time.time", lambda hours=hours: time.time_ns() / 1e9 + 3600 * hours)
        assert abs(now() - datetime.now(UTC)) > timedelta(minutes=59)
        assert claim_position(registry, "core", number=0, holder=holder) == (holder == FAR)
    assert heartbeat(registry, "core", number=0, holder=FAR)
    silence(registry, 130)
    assert claim_position(registry, "core", number=0, holder=current_process_id())
    with registry.read_session() as session:
        lease_until = session.scalars(select(Position.lease_until)).one()
        assert lease_until is not None
        remaining = lease_until - database_now(session)
    assert timedelta(seconds=100) < remaining <= timedelta(seconds=120)


# Checkpoints


def test_a_checkpoint_belongs_to_its_holder_and_is_deleted_when_learned(registry: Registry) -> None:
    keep = partial(save_checkpoint, registry, "core", number=0)
    assert load_checkpoint(registry, "core", number=0) is None
    assert claim_position(registry, "core", number=0, holder=FAR)
    for epoch in (1, 2):
        keep(holder=FAR, epoch=epoch, data=b"state %d" % epoch)
    assert load_checkpoint(registry, "core", number=0) == b"state 2"
    assert checkpoint_epoch(registry, "core", number=0) == 2
    assert [blob.bytes for blob in registry.blobs.iterate()] == [7], "what was replaced does not pile up"
    assert find_damage(registry) == []
    silence(registry, 130)
    assert claim_position(registry, "core", number=0, holder=current_process_id())
    with pytest.raises(ClaimLost):
        keep(holder=FAR, epoch=3, data=b"late")
    assert load_checkpoint(registry, "core", number=0) == b"state 2"
    with registry.unit_of_work() as unit:
        unit.mark_failed("core", 0, error="boom", holder=current_process_id())
    assert load_checkpoint(registry, "core", number=0) == b"state 2", "what failed goes on from there"
    learn(registry, "sst2")
    with registry.unit_of_work() as unit:
        unit.mark_learned("core", 0, delta="sst2@1")
    assert load_checkpoint(registry, "core", number=0) is None
    assert [blob.bytes for blob in garbage(registry)] == [len(b"late")]
    assert find_damage(registry) == []


def test_a_blob_that_another_row_references_outlives_the_checkpoint(registry: Registry) -> None:
    assert claim_position(registry, "core", number=0, holder=FAR)
    save_checkpoint(registry, "core", number=0, holder=FAR, epoch=1, data=b"values")
    learn(registry, "sst2", digest=registry.blobs.put(b"values"))
    with registry.unit_of_work() as unit:
        unit.mark_learned("core", 0, delta="sst2@1")
    assert find_damage(registry) == []


def test_a_checkpoints_blob_is_deleted_after_the_commit_or_left_to_garbage_collection(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert claim_position(registry, "core", number=0, holder=FAR)
    save_checkpoint(registry, "core", number=0, holder=FAR, epoch=1, data=b"state")
    learn(registry, "sst2")
    with pytest.raises(KeyboardInterrupt):
        interrupt_learned(registry)
    assert load_checkpoint(registry, "core", number=0) == b"state"
    with monkeypatch.context() as patch:
        patch.setattr(BlobStore, "delete", lambda *_, **__: (_ for _ in ()).throw(BlobError("no permission")))
        with registry.unit_of_work() as unit:
            unit.mark_learned("core", 0, delta="sst2@1")
    assert load_checkpoint(registry, "core", number=0) is None
    assert [blob.bytes for blob in garbage(registry)] == [5]


def interrupt_learned(registry: Registry) -> None:
    with registry.unit_of_work() as unit:
        unit.mark_learned("core", 0, delta="sst2@1")
        raise KeyboardInterrupt


def garbage(registry: Registry) -> list[StoredBlob]:
    return collect_garbage(registry, older_than=timedelta(0), dry_run=True)


# Routed scores


def test_routed_scores_cover_every_learned_task_or_none(tmp_path: Path) -> None:
    with make_registry(tmp_path) as registry:
        begin(registry, "sst2", "trec")
        for task in ("sst2", "trec"):
            learn(registry, task)
        with registry.unit_of_work() as unit:
            unit.mark_learned("core", 1, delta="trec@1")
        late = [accuracy(0.5, mode="routed", stream="core", step=1)]
        with registry.unit_of_work() as unit:
            assert unit.add_routed_scores("core", 1, {"trec@1": late})
            unit.mark_learned("core", 0, delta="sst2@1")
            assert not unit.add_routed_scores("core", 1, {"trec@1": late}), "sst2 would be missing among the routes"
            assert unit.add_routed_scores("core", 1, {"trec@1": late, "sst2@1": late})
            assert unit.add_routed_scores("core", 0, {"sst2@1": late})
