"""Read-only registries: every read works, and nothing is written to disk."""

import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from registry import BlobError, Registry, RegistryError, dump_registry, find_damage
from tests.helpers.registries import digest_of, learn, make_registry

NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a registry that other users can read."""
    made = Path(mkdtemp(prefix="continual-read-only-"))
    made.chmod(0o755)
    with make_registry(made) as registry:
        learn(registry, "sst2")
    yield made
    for place in (made, *made.rglob("*")):
        place.chmod(0o755)
    shutil.rmtree(made)


def without_rights(folder: Path, look: Callable[[], object]) -> None:
    """Run `look` in a child process that may read `folder` and write nothing."""
    for place in (folder, *folder.rglob("*")):
        place.chmod(0o555 if place.is_dir() else 0o444)
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:  # who may write everywhere
                os.setuid(NOBODY)
            look()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def opened(folder: Path) -> Registry:
    return Registry.open(f"sqlite:///{folder}/home/registry.db", f"{folder}/home/blobs")


def test_everything_can_be_read(folder: Path, tmp_path: Path) -> None:
    def look() -> None:
        with opened(folder) as registry:
            assert [row["delta"] for row in registry.deltas()] == ["sst2@1"]
            assert registry.blobs.get(digest_of(registry, "sst2@1")) == b"sst2"
            assert find_damage(registry) == []

    before = sorted(folder.rglob("*"))
    without_rights(folder, look)
    assert sorted(folder.rglob("*")) == before


def test_rows_in_a_living_writers_log_are_read(folder: Path) -> None:
    with opened(folder) as registry:
        learn(registry, "trec")
        assert (folder / "home/registry.db-wal").stat().st_size > 0

        def look() -> None:
            with opened(folder) as reading:
                assert [row["delta"] for row in reading.deltas()] == ["sst2@1", "trec@1"]

        without_rights(folder, look)


def test_writing_is_refused_with_the_reason(folder: Path) -> None:
    def look() -> None:
        with opened(folder) as registry:
            with pytest.raises(RegistryError, match="readonly database"), registry.unit_of_work() as unit:
                unit.set_mlflow_run("sst2@1", "run")
            with pytest.raises(BlobError, match=r"could not write .*Permission denied"):
                registry.blobs.put(b"new")

    without_rights(folder, look)


def test_it_can_be_dumped(folder: Path) -> None:
    def look() -> None:
        with opened(folder) as registry:
            dump_registry(registry, Path(mkdtemp()) / "archive.zip")

    without_rights(folder, look)
