"""The watched folder of task files: each is submitted once it is complete, and retried after errors."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from continual.streams.arrivals import WatchedFolder
from registry import Registry
from registry.errors import Interrupted, RegistryError

TASK = "name: sst2\nsource: {path: json, data_files: {train: rows.jsonl}}\ntext: text\nlabel: label\n"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.setattr("registry.schema.connections.BUSY_SECONDS", 0)
    with Registry.open(f"sqlite:///{tmp_path}/home/registry.db", f"{tmp_path}/home/blobs") as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "dropped"
    made.mkdir()
    (made / "sst2.yaml").write_text(TASK)
    return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The elapsed seconds of a fake clock."""
    passed = [0.0]
    monkeypatch.setattr("continual.streams.arrivals.time.monotonic", lambda: passed[0])
    return passed


def test_a_file_is_read_once_unchanged_for_a_second(registry: Registry, folder: Path, clock: list[float]) -> None:
    inbox, file = WatchedFolder(registry, folder), folder / "sst2.yaml"
    for moment in (0.0, 0.5, 0.9):
        clock[0] = moment
        inbox.submit_changed()
        assert (registry.arrivals(), inbox.has_unsettled_files) == ([], True)
    file.write_text(TASK + "seed: 3\n")
    os.utime(file, ns=(1, 1))
    for moment, arrived in ((1.1, 0), (2.0, 0), (2.1, 1), (9.0, 1)):
        clock[0] = moment
        inbox.submit_changed()
        assert (len(registry.arrivals()), inbox.has_unsettled_files) == (arrived, not arrived)


def test_a_file_is_submitted_again_after_a_registry_error(
    registry: Registry, folder: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = WatchedFolder(registry, folder)
    inbox.submit_changed()
    clock[0] = 1.0
    with closing(sqlite3.connect(folder.parent / "home/registry.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(Interrupted, match="database is locked"):
            inbox.submit_changed()

    def full(*_: object, **__: object) -> int:
        raise RegistryError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "submit", full)
        with pytest.raises(RegistryError, match="full"):
            inbox.submit_changed()
    assert (registry.arrivals(), inbox.has_unsettled_files) == ([], True)
    inbox.submit_changed()
    assert ([row["task"] for row in registry.arrivals()], inbox.has_unsettled_files) == (["sst2"], False)
