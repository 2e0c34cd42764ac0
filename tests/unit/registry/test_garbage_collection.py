"""Garbage collection of blobs: unreferenced and old ones are deleted, all others stay."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from registry import BlobError, BlobStore, Registry, RegistryMissing, collect_garbage, find_damage, warnings
from registry.schema.tables import Checkpoint
from tests.helpers.registries import accuracy, begin, delta_record, learn, make_registry, task_record

pytestmark = pytest.mark.usefixtures("database")
AT_ONCE = timedelta(0)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with make_registry(tmp_path) as opened:
        begin(opened, "first", name="first")
        yield opened


def aged(registry: Registry, data: bytes, *, hours: float) -> str:
    """Store a blob with an old modification time; its digest."""
    digest = registry.blobs.put(data)
    moment = time.time() - 3600 * hours
    os.utime(registry.blobs.path(digest), (moment, moment))
    return digest


def unreferenced(registry: Registry) -> set[str]:
    return {blob.name for blob in registry.blobs.iterate()}


def test_only_old_and_unreferenced_blobs_are_deleted(registry: Registry) -> None:
    parts = (b"values", b"answers", b"fixed", b"half")
    values, answers, fixed, half = (registry.blobs.put(part) for part in parts)
    learn(registry, "sst2", digest=values, predictions=answers, replay=fixed)
    begin(registry, "trec")
    with registry.unit_of_work() as unit:
        unit.session.add(Checkpoint(position_id=1, epoch=1, digest=half))
    named = {aged(registry, part, hours=9) for part in (*parts, b"signature")}
    old, young = aged(registry, b"old", hours=2), registry.blobs.put(b"young")
    listed = collect_garbage(registry, dry_run=True)
    assert [(blob.name, blob.bytes) for blob in listed] == [(old, 3)]
    assert unreferenced(registry) == named | {old, young}
    assert collect_garbage(registry) == listed
    assert unreferenced(registry) == named | {young}
    assert find_damage(registry) == []


def test_temporary_files_are_deleted_and_foreign_files_stay(registry: Registry) -> None:
    folder = Path(registry.blobs.path(registry.blobs.put(b"x"))).parent
    draft, note = folder / f".{'0' * 32}", folder / "notes.txt"
    for file in (draft, note):
        file.write_bytes(b"half")
        os.utime(file, (0, 0))
    assert [blob.name for blob in collect_garbage(registry)] == [folder.name + draft.name]
    assert (draft.exists(), note.exists()) == (False, True)


def test_storing_again_protects_a_blob(registry: Registry) -> None:
    digest = aged(registry, b"again", hours=2)
    assert [blob.name for blob in collect_garbage(registry, dry_run=True)] == [digest]
    registry.blobs.put(b"again")
    assert collect_garbage(registry) == []


def test_age_is_measured_by_the_stores_clock(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """With this host an hour ahead of the store, a blob that seems 90 minutes old is 30 minutes old."""
    digest = aged(registry, b"young", hours=1.5)
    behind = registry.blobs.store_now() - timedelta(hours=1)
    with monkeypatch.context() as patch:
        patch.setattr(BlobStore, "store_now", lambda blobs: behind)
        assert collect_garbage(registry) == []
    assert [blob.name for blob in collect_garbage(registry)] == [digest]


def test_a_unit_of_work_cannot_reference_a_collected_blob(registry: Registry) -> None:
    record = delta_record(registry, "sst2")
    collect_garbage(registry, older_than=AT_ONCE)
    with registry.unit_of_work() as unit:
        unit.add_task(task_record("sst2"))
    with pytest.raises(BlobError, match="is not stored"), registry.unit_of_work() as unit:
        unit.add_delta(record)


def test_collection_waits_for_open_transactions(registry: Registry) -> None:
    """The referencing row is not committed yet and its blob is old: it must survive."""
    record = delta_record(registry, "sst2", digest=aged(registry, b"old", hours=2))
    with ThreadPoolExecutor(1) as pool:
        with registry.unit_of_work() as unit:
            unit.add_task(task_record("sst2"))
            unit.add_delta(record, scores=[accuracy(0.5)])
            collecting = pool.submit(collect_garbage, registry, older_than=AT_ONCE)
            time.sleep(0.3)
            assert not collecting.done()
        assert collecting.result(30) == []
    assert find_damage(registry) == []


def test_blobs_in_memory_are_collected_too(tmp_path: Path) -> None:
    with make_registry(tmp_path) as opened:
        begin(opened, "first", name="first")
        registry = Registry(opened.engine, BlobStore(f"memory://collected{tmp_path}"))
        digest = registry.blobs.put(b"nobody's")
        assert [blob.name for blob in collect_garbage(registry, older_than=AT_ONCE)] == [digest]
        assert unreferenced(registry) == set()


def test_blobs_beside_an_empty_registry_are_damage_and_are_not_deleted(tmp_path: Path) -> None:
    """They are those of a lost registry, or of another one."""
    with make_registry(tmp_path) as registry:
        kept = aged(registry, b"learned with much work", hours=9)
        for dry_run in (True, False):
            with pytest.raises(RegistryMissing, match=r"holds 1 blobs.*Nothing was deleted"):
                collect_garbage(registry, older_than=AT_ONCE, dry_run=dry_run)
        (problem,) = find_damage(registry)
        assert "the registry is empty" in problem
        assert warnings(registry) == [], "gc is not advised"
        assert unreferenced(registry) == {kept}
        learn(registry, "sst2")
        assert kept in {blob.name for blob in collect_garbage(registry, dry_run=True)}, "a row names its own blobs now"
