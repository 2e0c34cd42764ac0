"""Of the controllers that run one stream, exactly one learns a position."""

import time
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from socket import gethostname

import pytest
from registry_cases import begin, claim_and_die, claim_and_stay, learn, make_registry
from sqlalchemy import select

from registry import NotFound, Registry, RegistryError, claim, heartbeat, held, release, this_holder
from registry.base import now
from registry.holders import alive
from registry.tables import Position

pytestmark = pytest.mark.usefixtures("database")

FAR = "elsewhere:1:1"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with make_registry(tmp_path) as opened:
        begin(opened, "sst2")
        yield opened


def silence(registry: Registry, seconds: int) -> None:
    """As if the holder had been silent for so long."""
    with registry.unit() as unit:
        for position in unit.session.scalars(select(Position).where(Position.lease_until.is_not(None))):
            position.lease_until -= timedelta(seconds=seconds)


def test_of_two_processes_one_wins(tmp_path: Path, registry: Registry) -> None:
    spawn = get_context("spawn")
    start, won = spawn.Barrier(2), spawn.Queue()
    children = [spawn.Process(target=claim_and_stay, args=(tmp_path, start, won)) for _ in range(2)]
    for child in children:
        child.start()
    assert sorted(won.get(timeout=60) for _ in children) == [False, True]
    for child in children:
        child.join()


def test_a_dead_process_of_this_host_is_succeeded_at_once(tmp_path: Path, registry: Registry) -> None:
    child = get_context("spawn").Process(target=claim_and_die, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert registry.stream("core").positions[0].state == "held"
    assert claim(registry, "core", number=0, holder=this_holder())


def test_a_reused_process_number_is_not_the_holder() -> None:
    host, pid, start = this_holder().rsplit(":", 2)
    assert not alive(f"{host}:{pid}:{int(start or 0) + 1}", leased=True) or not start
    assert not alive(f"{gethostname()}:{2**22 + 1}:1", leased=True)


def test_a_process_is_not_told_from_its_own_earlier_runs_but_by_the_lease() -> None:
    """What a run could not give back, for want of a database, must not keep this process waiting for itself."""
    assert alive(this_holder(), leased=True)
    assert not alive(this_holder(), leased=False)


def test_another_host_is_judged_by_its_heartbeat(registry: Registry) -> None:
    assert claim(registry, "core", number=0, holder=FAR)
    silence(registry, 110)
    assert not claim(registry, "core", number=0, holder=this_holder())
    silence(registry, 130)
    assert claim(registry, "core", number=0, holder=this_holder())
    assert not heartbeat(registry, "core", number=0, holder=FAR)


def test_who_lost_a_position_cannot_finish_it(registry: Registry) -> None:
    learn(registry, "sst2")
    claim(registry, "core", number=0, holder=this_holder())
    with pytest.raises(RegistryError, match="no longer by elsewhere"), registry.unit() as unit:
        unit.finish("core", 0, delta="sst2@1", holder=FAR)


def test_failed_and_released_positions_are_taken_and_learned_ones_never(registry: Registry) -> None:
    learn(registry, "sst2")
    with registry.unit() as unit:
        unit.fail("core", 0, error="boom")
    assert claim(registry, "core", number=0, holder=FAR)
    assert not release(registry, "core", number=0, holder=this_holder())
    assert release(registry, "core", number=0, holder=FAR)
    assert claim(registry, "core", number=0, holder=this_holder())
    with registry.unit() as unit:
        unit.finish("core", 0, delta="sst2@1", holder=this_holder())
    assert not claim(registry, "core", number=0, holder=this_holder())
    with pytest.raises(NotFound):
        claim(registry, "core", number=1, holder=FAR)


def test_heartbeats_are_sent_while_a_position_is_held(registry: Registry) -> None:
    holder = this_holder()
    claim(registry, "core", number=0, holder=holder)
    silence(registry, 1000)
    with held(registry, "core", number=0, holder=holder, every=0.01):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and _silent(registry):
            time.sleep(0.01)
    assert not _silent(registry)
    assert registry.stream("core").positions[0].state == "held"


def _silent(registry: Registry) -> bool:
    with registry.reading() as session:
        return session.scalars(select(Position.lease_until)).one() < now()
