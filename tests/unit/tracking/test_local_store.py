"""MLflow's store under the home: complete or absent, and replaced where it is broken, with nothing lost."""

import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from mlflow.store.db import utils
from sqlalchemy import Engine, delete, event

from continual.settings import Locations
from continual.tracking import flush_outbox
from continual.tracking.local_store import ensure_local_store, repair_local_store
from registry import Registry, list_pending
from registry.schema.tables import OutboxRow
from tests.helpers.controller_processes import fork, wait_exit_code
from tests.helpers.mlflow_runs import client_of, names_of, sync_all
from tests.helpers.registries import learn_stream, make_registry

FILES = ["core", "sst2@1"]


@pytest.fixture
def store(places: Locations) -> Path:
    """The path of a store that is not made yet."""
    file = places.home / "mlflow.db"
    file.unlink()
    return file


def parts_of(file: Path) -> list[str]:
    return sorted(part.name for part in file.parent.glob("*mlflow.db*"))


def test_a_kill_while_it_is_made_leaves_a_draft_and_no_store(
    registry: Registry, places: Locations, store: Path, empty_mlflow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> int:
        command.upgrade = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # after the first tables
        with make_registry(places.home.parent) as opened:
            ensure_local_store(opened, places)
        return 0

    learn_stream(registry, "sst2")
    assert wait_exit_code(fork(work, places.home / "log"), within=60) == -signal.SIGKILL
    (half,) = places.home.glob(".mlflow.db.*.draft")
    assert half.stat().st_size > 0
    assert not store.exists()
    half.rename(store)  # as earlier releases left it
    monkeypatch.setattr(utils, "_initialize_tables", lambda engine: shutil.copy(empty_mlflow, engine.url.database))
    sync_all(registry, places)
    assert names_of(places) == FILES
    assert [name.rpartition(".")[2] for name in parts_of(store)] == ["db", "broken"]
    assert client_of(places).get_model_version_by_alias("sst2", "champion")


Harm = Callable[[Path], Any]
HARMS: dict[str, Harm] = {
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "no database": lambda file: file.write_bytes(b"nothing that SQLite reads" * 1000),
    "empty": lambda file: os.truncate(file, 0),
    "half made": lambda file: _execute(file, "DROP TABLE experiments"),
    "removed": lambda file: file.unlink(),
}


def _execute(file: Path, statement: str) -> None:
    connection = sqlite3.connect(file)
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.fixture
def sent(registry: Registry, places: Locations) -> Path:
    """The store of a registry that noted its runs in it."""
    learn_stream(registry, "sst2")
    with registry.unit_of_work() as unit:
        unit.session.execute(delete(OutboxRow))
        for name in FILES:
            unit.set_mlflow_run(name, "a run")
    experiment = "INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (7, 'continual', 'active')"
    _execute(places.home / "mlflow.db", experiment)
    return places.home / "mlflow.db"


@pytest.mark.parametrize("harm", HARMS)
def test_a_broken_store_is_set_aside_and_everything_waits_to_be_sent(
    harm: str, registry: Registry, places: Locations, sent: Path, caplog: pytest.LogCaptureFixture
) -> None:
    HARMS[harm](sent)
    broken = sent.read_bytes() if sent.exists() else None
    for _ in range(2):
        repair_local_store(registry, places)
        waiting = [(message.message, message.subject) for message in list_pending(registry)]
        assert waiting == [("stream", "core"), ("delta", "sst2@1"), ("champion", "sst2")]
    assert registry.delta("sst2@1").mlflow_run is None
    assert not sent.exists()
    aside = [file.read_bytes() for file in places.home.glob("mlflow.db.*.broken")]
    assert aside == ([] if broken is None else [broken])
    assert [record.message.count("mlflow.db") for record in caplog.records] == ([] if broken is None else [2])


def test_a_store_with_runs_is_left_to_mlflow_whatever_its_revision(
    registry: Registry, places: Locations, sent: Path
) -> None:
    """MLflow says itself how to upgrade it."""
    _execute(sent, "UPDATE alembic_version SET version_num = 'another'")
    repair_local_store(registry, places)
    assert list_pending(registry) == ()
    assert parts_of(sent) == ["mlflow.db"]


def test_a_full_disk_leaves_nothing_and_every_message(
    registry: Registry, places: Locations, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make: Callable[[Engine], None] = utils._initialize_tables

    def make_on_full_disk(engine: Engine) -> None:
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count = 9"))
        make(engine)

    learn_stream(registry, "sst2")
    waiting = len(list_pending(registry))
    monkeypatch.setattr(utils, "_initialize_tables", make_on_full_disk)
    (result,) = flush_outbox(registry, places)
    assert result.unreachable
    assert "database or disk is full" in str(result.error)
    assert parts_of(store) == []
    assert 0 < len(list_pending(registry)) <= waiting


def test_of_two_processes_the_first_one_makes_the_store(
    registry: Registry, places: Locations, store: Path, empty_mlflow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second finds the first one's runs in it already, and keeps them."""

    def make_while_another_does(engine: Engine) -> None:
        shutil.copy(empty_mlflow, str(engine.url.database))
        shutil.copy(empty_mlflow, store)
        _execute(store, "CREATE TABLE runs_of_the_first (id)")

    monkeypatch.setattr(utils, "_initialize_tables", make_while_another_does)
    ensure_local_store(registry, places)
    _execute(store, "SELECT * FROM runs_of_the_first")
    assert parts_of(store) == ["mlflow.db"]
