"""What nothing names is collected; what a row names, or somebody is about to name, is not."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from registry import BlobError, BlobStore, Registry, collect_garbage, find_damage
from registry.schema.tables import Checkpoint
from tests.helpers.registries import accuracy, begin, delta_record, learn, make_registry, task_record

pytestmark = pytest.mark.usefixtures("database")
AT_ONCE = timedelta(0)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with make_registry(tmp_path) as opened:
        yield opened


def aged(registry: Registry, data: bytes, *, hours: float) -> str:
    """The digest of a blob that was put so long ago."""
    digest = registry.blobs.put(data)
    moment = time.time() - 3600 * hours
    os.utime(registry.blobs.path(digest), (moment, moment))
    return digest


def found(registry: Registry) -> set[str]:
    return {blob.name for blob in registry.blobs.iterate()}


def test_only_what_is_old_and_unnamed_is_deleted(registry: Registry) -> None:
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
    assert found(registry) == named | {old, young}
    assert collect_garbage(registry) == listed
    assert found(registry) == named | {young}
    assert find_damage(registry) == []


def test_left_over_drafts_go_and_other_peoples_files_stay(registry: Registry) -> None:
    folder = Path(registry.blobs.path(registry.blobs.put(b"x"))).parent
    draft, other = folder / f".{'0' * 32}", folder / "notes.txt"
    for file in (draft, other):
        file.write_bytes(b"half")
        os.utime(file, (0, 0))
    assert [blob.name for blob in collect_garbage(registry)] == [folder.name + draft.name]
    assert (draft.exists(), other.exists()) == (False, True)


def test_what_is_put_again_is_young_again(registry: Registry) -> None:
    digest = aged(registry, b"again", hours=2)
    assert [blob.name for blob in collect_garbage(registry, dry_run=True)] == [digest]
    registry.blobs.put(b"again")
    assert collect_garbage(registry) == []


def test_age_is_told_by_the_clock_of_the_blobs(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """This host's is an hour ahead of it: what looks an hour and a half old is half an hour old."""
    digest = aged(registry, b"young", hours=1.5)
    behind = registry.blobs.store_now() - timedelta(hours=1)
    with monkeypatch.context() as patch:
        patch.setattr(BlobStore, "store_now", lambda blobs: behind)
        assert collect_garbage(registry) == []
    assert [blob.name for blob in collect_garbage(registry)] == [digest]


def test_a_unit_cannot_name_what_was_collected(registry: Registry) -> None:
    record = delta_record(registry, "sst2")
    collect_garbage(registry, older_than=AT_ONCE)
    with registry.unit_of_work() as unit:
        unit.add_task(task_record("sst2"))
    with pytest.raises(BlobError, match="is not stored"), registry.unit_of_work() as unit:
        unit.add_delta(record)


def test_collecting_waits_for_who_is_writing(registry: Registry) -> None:
    """The row is not committed yet, and its blob is as old as can be: it is spared all the same."""
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
    with make_registry(tmp_path) as known:
        registry = Registry(known.engine, BlobStore("memory://collected"))
        digest = registry.blobs.put(b"nobody's")
        assert [blob.name for blob in collect_garbage(registry, older_than=AT_ONCE)] == [digest]
        assert found(registry) == set()
