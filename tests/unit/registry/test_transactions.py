"""Concurrent transactions, broken connections and unavailable databases."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Thread

import psycopg
import pytest
from sqlalchemy import select, text

from registry import Disconnected, Interrupted, Registry, UnitOfWork
from registry.schema.tables import Stream
from tests.helpers.registries import begin, learn_in, make_registry, task_record

pytestmark = pytest.mark.usefixtures("database")


def test_a_conflicting_unit_of_work_is_retried(tmp_path: Path, database: str) -> None:
    """Two units of work find a row missing, and only one can insert it."""
    if not database.startswith("postgresql"):
        pytest.skip("SQLite's writers queue")
    with make_registry(tmp_path) as registry:
        attempts: list[str] = []

        def work(unit: UnitOfWork) -> None:
            attempts.append("begun")
            if unit.session.scalar(select(Stream).where(Stream.name == "core")) is None:
                unit.session.add(Stream(name="core", backbone_id=1, spec={}, digest=""))

        second = Thread(target=registry.write_with_retry, args=(work,))
        with registry.unit_of_work() as first:
            work(first)
            first.session.flush()
            second.start()  # sees no stream, and waits with its own until ours is committed
            while not _waits_for_a_lock(registry):
                time.sleep(0.01)
        second.join()
        assert len(attempts) == 3
        assert [stream.name for stream in registry.streams()] == ["core"]
        with pytest.raises(Interrupted), registry.unit_of_work() as unit:
            unit.session.add(Stream(name="core", backbone_id=1, spec={}, digest=""))


def _waits_for_a_lock(registry: Registry) -> bool:
    with registry.read_session() as session:
        waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return bool(session.scalar(waiting))


def test_an_unavailable_or_busy_database_is_a_retryable_error(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.schema.connections.RECONNECT_TIMEOUT", 0.0)
    monkeypatch.setattr("registry.schema.connections.RETRY_SECONDS", 0.0)
    monkeypatch.setattr("registry.schema.connections.BUSY_SECONDS", 0)
    with make_registry(tmp_path) as registry, _away(registry) as disconnect:
        disconnect()
        for operation in (
            registry.tasks,
            lambda: registry.write_with_retry(lambda unit: unit.add_task(task_record("sst2"))),
        ):
            if database.startswith("postgresql") or operation != registry.tasks:  # SQLite's readers do not block
                with pytest.raises(Interrupted, match="Nothing was written"):
                    operation()


@contextmanager
def _away(registry: Registry) -> Iterator[Callable[[], object]]:
    """Yield a function that makes the database refuse connections or writes until the block ends."""
    url = registry.engine.url
    if url.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(str(url.database), isolation_level=None)) as connection:
            yield lambda: connection.execute("BEGIN IMMEDIATE")
        return
    server = url.set(drivername="postgresql", database="postgres").render_as_string(hide_password=False)
    with psycopg.connect(server, autocommit=True) as admin:

        def disconnect() -> None:
            admin.execute(f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS false")
            registry.engine.dispose()

        yield disconnect
        admin.execute(f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS true")


def test_a_unit_of_work_with_a_broken_connection_is_retried(tmp_path: Path, database: str) -> None:
    if not database.startswith("postgresql"):
        pytest.skip("SQLite has no connection that could break")
    with make_registry(tmp_path) as registry:
        begin(registry, "sst2")
        broken: list[int] = []

        def work(unit: UnitOfWork) -> str:
            name = learn_in(unit, registry, "sst2")
            if len(broken) < 2:
                broken.append(unit.session.scalar(text("SELECT pg_backend_pid()")))
                with registry.unit_of_work() as second_unit:
                    second_unit.session.execute(text(f"SELECT pg_terminate_backend({broken[-1]})"))
            unit.mark_learned("core", 0, delta=name)
            return name

        assert registry.write_with_retry(work) == "sst2@1"
        assert len(set(broken)) == 2
        assert [row["delta"] for row in registry.deltas()] == ["sst2@1"]
        broken.clear()
        with pytest.raises(Disconnected), registry.unit_of_work() as unit:
            work(unit)
        assert len(broken) == 1
