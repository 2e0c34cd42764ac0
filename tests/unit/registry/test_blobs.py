"""Content-addressed blobs in files, memory and object stores."""

from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import BlobError, BlobStore, Registry
from tasks.errors import InputError


@given(data=st.binary(max_size=64))
def test_a_stored_blob_is_read_back(data: bytes) -> None:
    blobs = BlobStore("memory://property")
    assert blobs.put(data) == sha256(data).hexdigest()
    assert blobs.get(blobs.put(data)) == data


def test_damage_is_detected_on_reading(tmp_path: Path) -> None:
    blobs = BlobStore(str(tmp_path))
    digest = blobs.put(b"delta")
    Path(blobs.path(digest)).write_bytes(b"dexta")
    with pytest.raises(BlobError, match=rf"{digest} is damaged: the 5 bytes at {tmp_path}"):
        blobs.get(digest)


def test_a_missing_blob_is_reported_with_its_location(tmp_path: Path) -> None:
    with pytest.raises(BlobError, match=rf"{'0' * 64} is missing: nothing at {tmp_path}/00/0"):
        BlobStore(str(tmp_path)).get("0" * 64)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64])
def test_only_digests_have_a_path(tmp_path: Path, digest: str) -> None:
    with pytest.raises(BlobError, match="is no digest"):
        BlobStore(str(tmp_path)).path(digest)


@pytest.mark.parametrize("scheme", ["file://", "memory://"])
def test_storing_again_renews_a_blobs_age(tmp_path: Path, scheme: str) -> None:
    blobs = BlobStore(f"{scheme}{tmp_path}")
    before = blobs.stat(blobs.put(b"delta"))
    moment = blobs.store_now()
    after = blobs.stat(blobs.put(b"delta"))
    assert before
    assert after
    assert before.put_at <= moment <= after.put_at
    assert [*blobs.iterate()] == [after]


def test_a_blob_can_be_stored_concurrently(tmp_path: Path) -> None:
    blobs, data = BlobStore(str(tmp_path)), bytes(200_000)
    with ThreadPoolExecutor(8) as threads:
        digests = set(threads.map(lambda _: BlobStore(str(tmp_path)).put(data), range(32)))
    assert [blobs.get(digest) for digest in digests] == [data]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [digests.pop()[2:]]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = BlobStore(str(tmp_path))

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(blobs._files, "mv", fail)
    with pytest.raises(BlobError, match=r"could not write .*disk full"):
        blobs.put(b"delta")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_storing_again_repairs_a_damaged_blob(tmp_path: Path) -> None:
    blobs = BlobStore(str(tmp_path))
    digest = blobs.put(b"whole")
    Path(blobs.path(digest)).write_bytes(b"holes")
    assert blobs.put(b"whole") == digest
    assert blobs.get(digest) == b"whole"


@pytest.mark.parametrize(("url", "extra"), [("s3://bucket/blobs", "s3"), ("gs://bucket/blobs", "gs")])
def test_a_missing_driver_is_reported_with_its_extra(url: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install the driver to access it")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(InputError, match=rf"Install that package \(pip install 'continual-deltas\[{extra}\]'\)"):
        BlobStore(url)


def test_an_unknown_protocol_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"cannot be kept at zzz://place.*Give a folder"):
        BlobStore("zzz://place")


def test_an_atomic_store_needs_no_temporary_file(monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = BlobStore("memory://whole")
    monkeypatch.setattr(blobs._files, "mv", None)
    digest = blobs.put(b"delta")
    assert [blob.name for blob in blobs.iterate()] == [digest]
    assert blobs.get(digest) == b"delta"


@pytest.mark.parametrize("doing", ["get", "exists", "put"])
def test_a_drivers_error_is_reported_with_the_location(doing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = BlobStore("memory://away")
    digest = blobs.put(b"delta")

    def fail(*_: object, **__: object) -> None:
        raise ConnectionResetError("the store is away")

    for name in ("cat_file", "exists", "pipe_file"):
        monkeypatch.setattr(type(blobs._files), name, fail)
    with pytest.raises(BlobError, match=rf"/away/{digest[:2]}/{digest[2:]}: ConnectionResetError: the store is away"):
        getattr(blobs, doing)(b"delta" if doing == "put" else digest)


def test_blobs_in_memory_need_a_registry_in_memory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="end with this process"):
        Registry.open(f"sqlite:///{tmp_path}/registry.db", "memory://blobs")
    assert not list(tmp_path.iterdir())
    with Registry.open("sqlite://", "memory://blobs") as registry:
        assert registry.deltas() == []
