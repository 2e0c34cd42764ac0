"""Registries with blobs in an S3 bucket, served on loopback."""

from datetime import timedelta
from pathlib import Path

import pytest

from registry import (
    BlobError,
    BlobStore,
    Registry,
    StoreMismatch,
    collect_garbage,
    dump_registry,
    find_damage,
    registry_identity,
    restore_registry,
)
from tests.helpers.databases import registry_url
from tests.helpers.registries import BACKBONE, learn


def test_blobs_are_stored_once_read_and_verified(bucket: str) -> None:
    blobs = BlobStore(f"{bucket}/alone")
    digest = blobs.put(b"delta")
    assert blobs.put(b"delta") == digest
    assert blobs.get(digest) == b"delta"
    assert [(blob.name, blob.bytes) for blob in blobs.iterate()] == [(digest, 5)]
    blobs._files.pipe_file(blobs.path(digest), b"dexta")
    with pytest.raises(BlobError, match="is damaged"):
        blobs.get(digest)
    with pytest.raises(BlobError, match=f"{'0' * 64} is missing"):
        blobs.get("0" * 64)
    assert not blobs.exists("0" * 64)


def test_a_missing_bucket_is_an_error(bucket: str) -> None:
    with pytest.raises(BlobError, match=r"could not write .*bucket does not exist"):
        BlobStore("s3://nowhere/blobs").put(b"delta")


def test_blobs_of_other_processes_are_visible_at_once(bucket: str) -> None:
    first, second = BlobStore(f"{bucket}/shared"), BlobStore(f"{bucket}/shared")
    assert list(first.iterate()) == []
    digest = second.put(b"delta")
    assert [blob.name for blob in first.iterate()] == [digest]
    assert first.exists(digest)


def test_a_registry_in_a_bucket_can_be_verified_collected_and_archived(bucket: str, tmp_path: Path) -> None:
    with Registry.open(registry_url(tmp_path), f"{bucket}/home") as registry:
        with registry.unit_of_work() as unit:
            unit.add_backbone(BACKBONE)
        learn(registry, "sst2")
        orphan = registry.blobs.put(b"nobody's")
        assert find_damage(registry) == []
        assert [blob.name for blob in collect_garbage(registry, older_than=timedelta(seconds=-5))] == [orphan]
        assert find_damage(registry) == []
        mark = registry.blobs.mark()
        assert mark
        assert mark.registry == registry_identity(registry)
        with (
            Registry.open(f"sqlite:///{tmp_path}/other.db", registry.blobs.url) as other,
            pytest.raises(StoreMismatch, match="belong to registry"),
        ):
            learn(other, "trec")
        dump_registry(registry, tmp_path / "archive.zip")
    moved = f"sqlite:///{tmp_path}/moved.db", f"{bucket}/moved"
    restore_registry(tmp_path / "archive.zip", *moved)
    with Registry.open(*moved) as registry:
        assert find_damage(registry) == []
        assert registry.deltas()[0]["delta"] == "sst2@1"
