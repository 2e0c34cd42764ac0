"""The mark by which a registry and its blob store know each other."""

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from registry import (
    BlobError,
    BlobStore,
    Registry,
    RegistryMissing,
    StoreMismatch,
    add_key,
    collect_garbage,
    delete_task,
    dump_registry,
    find_damage,
    registry_identity,
    restore_registry,
)
from registry.blobs import MARK
from tests.helpers.registries import begin, learn, make_registry

AT_ONCE = timedelta(0)


@pytest.fixture
def registry(tmp_path: Path, database: str) -> Iterator[Registry]:
    with make_registry(tmp_path) as opened:
        learn(opened, "sst2")
        yield opened


@pytest.fixture
def sqlite_registry(tmp_path: Path) -> Iterator[Registry]:
    with make_registry(tmp_path) as opened:
        learn(opened, "sst2")
        yield opened


def stored(blobs: BlobStore) -> set[str]:
    return {blob.name for blob in blobs.iterate()}


def mark_file(registry: Registry) -> Path:
    return Path(registry.blobs.url) / MARK


@pytest.mark.parametrize("scheme", ["file://", "memory://"])
def test_the_first_write_marks_the_store_and_no_listing_shows_the_mark(tmp_path: Path, scheme: str) -> None:
    with make_registry(tmp_path) as opened:
        registry = Registry(opened.engine, BlobStore(f"{scheme}{tmp_path}/marked"))
        assert registry.blobs.mark() is None
        begin(registry, "sst2")
        mark = registry.blobs.mark()
        assert mark
        assert mark.registry == registry_identity(registry)
        assert not registry.blobs.holds_blobs()
        orphan = registry.blobs.put(b"nobody's")
        assert [blob.name for blob in collect_garbage(registry, older_than=AT_ONCE)] == [orphan]
        assert registry.blobs.mark() == mark


def test_a_store_of_another_registry_is_neither_written_nor_collected(registry: Registry, tmp_path: Path) -> None:
    before = stored(registry.blobs)
    with Registry.open(f"sqlite:///{tmp_path}/other.db", str(tmp_path / "others")) as other:
        add_key(other, "ci", role="read")  # its own store is marked
        mixed = Registry(other.engine, registry.blobs)
        for dry_run in (True, False):
            with pytest.raises(StoreMismatch, match=f"belong to registry {registry_identity(registry)[:8]}, and this"):
                collect_garbage(mixed, older_than=AT_ONCE, dry_run=dry_run)
        with pytest.raises(StoreMismatch, match="CONTINUAL_BLOBS_URL"):
            learn(mixed, "trec")
        (problem,) = [line for line in find_damage(mixed) if "belong to registry" in line]
        assert mark_file(registry).name in problem
        assert other.tasks() == []
    assert stored(registry.blobs) == before
    assert find_damage(registry) == []


def test_a_damaged_mark_is_reported_and_stops_writing(registry: Registry, tmp_path: Path) -> None:
    mark_file(registry).write_text("{")
    with make_registry_again(registry) as again, pytest.raises(StoreMismatch, match="does not say which registry"):
        learn(again, "trec")
    assert any("does not say" in line for line in find_damage(registry))


def make_registry_again(registry: Registry) -> Registry:
    return Registry.open(registry.url, registry.blobs.url)


def test_a_store_without_a_mark_is_adopted_by_the_registry_that_has_rows(registry: Registry) -> None:
    mark_file(registry).unlink()
    with make_registry_again(registry) as again:
        assert collect_garbage(again) == []
        add_key(again, "ci", role="read")
        mark = again.blobs.mark()
        assert mark
        assert mark.registry == registry_identity(again)


def test_a_store_without_a_mark_is_not_adopted_by_an_empty_registry(registry: Registry, tmp_path: Path) -> None:
    mark_file(registry).unlink()
    with Registry.open(f"sqlite:///{tmp_path}/empty.db", registry.blobs.url) as empty:
        with pytest.raises(RegistryMissing, match=r"the registry is empty.* holds 2 blobs"):
            add_key(empty, "ci", role="read")
        assert empty.blobs.mark() is None


def test_a_copied_home_and_its_original_go_on_separately(sqlite_registry: Registry, tmp_path: Path) -> None:
    original = mark_file(sqlite_registry).read_text()
    learn(sqlite_registry, "trec")
    shutil.copytree(tmp_path / "home", tmp_path / "copy" / "home")
    with make_registry(tmp_path / "copy") as copy:
        assert delete_task(copy, "trec") == {"versions": 1, "blobs": 1}
        assert learn(copy, "mnli") == "mnli@1"
        assert find_damage(copy) == []
    assert find_damage(sqlite_registry) == []
    assert mark_file(sqlite_registry).read_text() == original


def test_a_dump_is_restored_beside_a_copy_of_the_blobs(registry: Registry, tmp_path: Path) -> None:
    dump_registry(registry, tmp_path / "dump.zip")
    orphan = registry.blobs.put(b"written after the dump")
    shutil.copytree(registry.blobs.url, tmp_path / "copied")
    target = f"sqlite:///{tmp_path}/restored.db", str(tmp_path / "copied")
    restore_registry(tmp_path / "dump.zip", *target)
    with Registry.open(*target) as restored:
        assert registry_identity(restored) == registry_identity(registry)
        assert [blob.name for blob in collect_garbage(restored, older_than=AT_ONCE)] == [orphan]
    assert orphan in stored(registry.blobs)
    again = f"sqlite:///{tmp_path}/again.db", str(tmp_path / "copied")
    with pytest.raises(StoreMismatch, match="at another place"):
        restore_registry(tmp_path / "dump.zip", *again)


def test_a_dump_is_not_restored_beside_the_blobs_of_its_original(registry: Registry, tmp_path: Path) -> None:
    """Its collection would delete what only the original names."""
    dump_registry(registry, tmp_path / "dump.zip")
    learn(registry, "trec")
    before = stored(registry.blobs)
    target = f"sqlite:///{tmp_path}/restored.db", registry.blobs.url
    with pytest.raises(StoreMismatch, match="would delete each other's blobs"):
        restore_registry(tmp_path / "dump.zip", *target)
    mark_file(registry).unlink()
    with pytest.raises(StoreMismatch, match="holds 1 blobs that the dump lacks"):
        restore_registry(tmp_path / "dump.zip", *target)
    assert stored(registry.blobs) == before
    with Registry.open(*target) as restored:
        assert restored.tasks() == []


def test_a_lost_database_is_restored_in_place(sqlite_registry: Registry, tmp_path: Path) -> None:
    dump_registry(sqlite_registry, tmp_path / "dump.zip")
    sqlite_registry.close()
    for file in (tmp_path / "home").glob("registry.db*"):
        file.unlink()
    restore_registry(tmp_path / "dump.zip", sqlite_registry.url, sqlite_registry.blobs.url)
    with make_registry(tmp_path) as restored:
        assert learn(restored, "sst2") == "sst2@2"


def test_a_registry_in_memory_leaves_no_mark_and_respects_one(sqlite_registry: Registry, tmp_path: Path) -> None:
    with Registry.empty(str(tmp_path / "none")) as empty:
        add_key(empty, "ci", role="read")
        assert empty.blobs.mark() is None
    with Registry.empty(sqlite_registry.blobs.url) as empty, pytest.raises(StoreMismatch):
        collect_garbage(empty, older_than=AT_ONCE)


def test_a_store_that_cannot_be_reached_hinders_no_write_without_blobs(
    sqlite_registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(blobs: BlobStore) -> None:
        raise BlobError("the store is away")

    with make_registry_again(sqlite_registry) as again, monkeypatch.context() as patch:
        patch.setattr(BlobStore, "mark", fail)
        add_key(again, "ci", role="read")
    assert [name for name, _ in sqlite_registry.active_keys().values()] == ["ci"]
