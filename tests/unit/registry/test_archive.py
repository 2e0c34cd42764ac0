"""A whole registry in one file: from and into both databases without loss, and refused where it is not whole."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import pytest
from sqlalchemy import select

from registry import (
    ArchiveError,
    BlobError,
    Parent,
    Registry,
    RegistryError,
    SchemaError,
    add_key,
    dump_registry,
    find_damage,
    restore_registry,
    revoke_key,
)
from registry.reads.blob_references import referenced_blobs
from registry.schema.base import Base
from registry.schema.tables import Checkpoint
from tasks.errors import InputError
from tests.helpers.claims import claim_position
from tests.helpers.databases import registry_url
from tests.helpers.registries import accuracy, begin, learn, make_registry


def fill(registry: Registry) -> None:
    """Rows in every table that has a writer, with values that a careless format would change."""
    learn(
        registry, "sst2", score=0.1 + 0.2, share=1e-310, seconds=1e300, settings={"b": [1, None, "ü\n\u2028"], "a": 0}
    )
    learn(registry, "sst2", score=1 / 3, parents=[Parent(delta="sst2@1", kind="warm_start", weight=0.1)], seed=2**60)
    begin(registry, "sst2", "trec", "mnli")
    with registry.unit_of_work() as unit:
        unit.mark_learned("core", 0, delta="sst2@1")
        unit.mark_failed("core", 2, error="it said: '; DROP TABLE deltas; --\n\ttwice")
        unit.add_scores("sst2@1", [accuracy(0.7, stream="core", step=2, mode="routed", low=0.5, high=0.9)])
    assert claim_position(registry, "core", number=1, holder="far:1:2")
    for key in ("ci", "ops"):
        add_key(registry, key, role="read")
    revoke_key(registry, "ci")
    with registry.unit_of_work() as unit:
        unit.session.add(Checkpoint(position_id=2, epoch=3, digest=registry.blobs.put(b"checkpoint")))


def contents(registry: Registry) -> dict[str, Any]:
    """Every row of every table, and every blob that is named, as Python sees them."""
    with registry.read_session() as session:
        rows = {t.name: session.execute(select(t).order_by(t.c.id)).all() for t in Base.metadata.sorted_tables}
        return rows | {digest: registry.blobs.get(digest) for _, digest in referenced_blobs(session)}


@pytest.fixture
def filled(tmp_path: Path, database: str) -> Iterator[Registry]:
    with make_registry(tmp_path) as registry:
        fill(registry)
        yield registry


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a registry in SQLite and its archive. Not to be changed."""
    folder = tmp_path_factory.mktemp("written")
    with make_registry(folder) as registry:
        fill(registry)
        dump_registry(registry, folder / "archive.zip")
    return folder


@pytest.fixture
def archive(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(written / "archive.zip", tmp_path))


def test_it_goes_through_both_databases_without_loss(tmp_path: Path, postgres_url: str) -> None:
    with make_registry(tmp_path / "first") as first:
        fill(first)
        before = contents(first)
        dump_registry(first, tmp_path / "1.zip")
    restore_registry(tmp_path / "1.zip", postgres_url, str(tmp_path / "second"))
    with Registry.open(postgres_url, str(tmp_path / "second")) as second:
        assert contents(second) == before
        assert find_damage(second) == []
        dump_registry(second, tmp_path / "2.zip")
    last = f"sqlite:///{tmp_path}/third.db", str(tmp_path / "third")
    restore_registry(tmp_path / "2.zip", *last)
    with Registry.open(*last) as third:
        assert contents(third) == before
    with ZipFile(tmp_path / "1.zip") as one, ZipFile(tmp_path / "2.zip") as two:
        names = set(one.namelist()) - {"manifest.json"}
        assert {name: one.read(name) for name in names} == {name: two.read(name) for name in names}


def test_a_restored_registry_goes_on(archive: Path, tmp_path: Path, database: str) -> None:
    """Its identities go on after those that were restored; what was waiting waits."""
    restore_registry(archive, database, str(tmp_path / "home/blobs"))
    with make_registry(tmp_path) as registry:
        assert learn(registry, "sst2") == "sst2@3"
        assert learn(registry, "new") == "new@1"
        begin(registry, "new", name="other")
        assert claim_position(registry, "core", number=2, holder="far:1:3")
        assert find_damage(registry) == []


def test_it_is_one_moment_while_others_write(filled: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one registers a task after each table that is written: none of it is in the archive."""
    before, real, number = contents(filled), ZipFile.open, iter(range(100))

    def write(*arguments: Any, **options: Any) -> Any:
        other = threading.Thread(target=learn, args=(filled, f"late{next(number)}"))
        other.start()
        other.join()
        return real(*arguments, **options)

    monkeypatch.setattr(ZipFile, "open", write)
    dump_registry(filled, tmp_path / "archive.zip")
    monkeypatch.undo()
    assert len(filled.tasks()) > 1
    target = f"sqlite:///{tmp_path}/other.db", str(tmp_path / "other")
    restore_registry(tmp_path / "archive.zip", *target)
    with Registry.open(*target) as restored:
        assert contents(restored) == before


def test_a_registry_that_is_not_empty_is_left_as_it_is(filled: Registry, tmp_path: Path) -> None:
    before = contents(filled)
    dump_registry(filled, tmp_path / "archive.zip")
    url = registry_url(tmp_path)
    with pytest.raises(InputError, match="the registry is not empty: it has"):
        restore_registry(tmp_path / "archive.zip", url, str(tmp_path / "home/blobs"))
    assert contents(filled) == before


def test_what_is_there_is_not_written_over(filled: Registry, tmp_path: Path) -> None:
    (tmp_path / "archive.zip").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        dump_registry(filled, tmp_path / "archive.zip")
    with pytest.raises(InputError, match="cannot be written"):
        dump_registry(filled, tmp_path / "no such folder" / "archive.zip")
    assert (tmp_path / "archive.zip").read_text() == "mine"


def test_a_damaged_blob_stops_a_dump_which_leaves_nothing(filled: Registry, tmp_path: Path) -> None:
    damaged = Path(filled.blobs.path(filled.blobs.put(b"checkpoint")))
    damaged.write_bytes(b"other")
    (tmp_path / "out").mkdir()
    with pytest.raises(BlobError, match="is damaged"):
        dump_registry(filled, tmp_path / "out" / "archive.zip")
    assert list((tmp_path / "out").iterdir()) == []


Entries = dict[str, bytes]


def entries(archive: Path) -> Entries:
    with ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def rewritten(archive: Path, change: Callable[[Entries], object]) -> None:
    """The archive with other entries, each a whole one for zip."""
    found = entries(archive)
    change(found)
    with ZipFile(archive, "w") as opened:
        for name, data in found.items():
            opened.writestr(ZipInfo(name), data)


def forged(found: Entries, table: str, change: Callable[[bytes], bytes]) -> None:
    """Other rows, with a manifest that fits them."""
    name, manifest = f"tables/{table}.jsonl", json.loads(found["manifest.json"])
    found[name] = change(found[name])
    manifest["tables"][table] = {"rows": found[name].count(b"\n"), "sha256": sha256(found[name]).hexdigest()}
    found["manifest.json"] = json.dumps(manifest).encode()


def a_blob(found: Entries) -> str:
    return next(name for name in found if name.startswith("blobs/"))


def said(found: Entries, **changes: Any) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(found["manifest.json"]) | changes
    found["manifest.json"] = json.dumps(manifest).encode()
    return manifest


TAMPERED: dict[str, tuple[Callable[[Entries], object], str]] = {
    "a row": (lambda found: found.update({"tables/tasks.jsonl": b"{}\n"}), "rows of tasks are not those"),
    "no table": (lambda found: found.pop("tables/deltas.jsonl"), "is missing in it"),
    "a blob": (lambda found: found.update({a_blob(found): b"other"}), "has other bytes"),
    "no blob": (lambda found: found.pop(a_blob(found)), "blobs of"),
    "a blob more": (lambda found: found.update({f"blobs/{sha256(b'x').hexdigest()}": b"x"}), "blobs of"),
    "a path": (lambda found: found.update({"../../evil": b"x"}), "does not belong there"),
    "a blob's path": (lambda found: found.update({"blobs/../../evil": b"x"}), "does not belong there"),
    "no manifest": (lambda found: found.pop("manifest.json"), r"no manifest\.json"),
    "a list": (lambda found: found.update({"manifest.json": b"[]"}), "wrong values"),
    "no JSON": (lambda found: found.update({"manifest.json": b"{"}), "not a whole archive"),
    "a newer one": (lambda found: said(found, format=9), "archive of format 9"),
    "a newer schema": (lambda found: said(found, revision="9999"), "does not know"),
    "another table": (lambda found: said(found, tables={"sqlite_master": {"rows": 0, "sha256": ""}}), "missing in it"),
    "an unnamed blob": (
        lambda found: (
            said(found, blobs=json.loads(found["manifest.json"])["blobs"] + 1),
            found.update({f"blobs/{sha256(b'x').hexdigest()}": b"x"}),
        ),
        "or no row of it names it",
    ),
    "forged columns": (lambda found: forged(found, "tasks", lambda rows: b'{"id": 1}\n'), "a row of tasks has"),
    "forged rows": (lambda found: forged(found, "tasks", lambda rows: b"[1]\n"), "line 1 of tasks is no row"),
    "a forged moment": (
        lambda found: forged(found, "backbones", lambda rows: rows.replace(b'"created_at": "20', b'"created_at": "x')),
        "no moment",
    ),
    "rows twice": (lambda found: forged(found, "tasks", lambda rows: rows + rows), "could not be restored"),
    "lost rows": (lambda found: forged(found, "tasks", lambda rows: b""), "could not be restored|no row of it names"),
}


@pytest.mark.parametrize("harm", TAMPERED)
def test_a_tampered_archive_is_refused_and_leaves_nothing(
    harm: str, archive: Path, tmp_path: Path, database: str
) -> None:
    change, message = TAMPERED[harm]
    rewritten(archive, change)
    blobs = tmp_path / "deep" / "blobs"
    with pytest.raises((ArchiveError, SchemaError, RegistryError), match=message):
        restore_registry(archive, database, str(blobs))
    assert not blobs.exists()
    assert not list(tmp_path.rglob("evil"))
    with Registry.open(database, str(blobs)) as registry:
        assert all(rows == [] for rows in contents(registry).values())


@pytest.mark.parametrize("kept", [0, 1, 1000, -1, -200])
def test_an_archive_that_was_cut_off_is_refused(kept: int, archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:kept])
    with pytest.raises(ArchiveError, match="not a whole archive"):
        restore_registry(archive, f"sqlite:///{tmp_path}/new/registry.db", str(tmp_path / "new/blobs"))
    assert not (tmp_path / "new").exists()


def test_every_flipped_byte_is_noticed_or_of_no_effect(written: Path, archive: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    with make_registry(written) as registry:
        before = contents(registry)
    refused, step = 0, len(whole) // 40
    for at in range(0, len(whole), step):
        archive.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        target = f"sqlite:///{tmp_path}/{at}/registry.db", f"{tmp_path}/{at}/blobs"
        try:
            restore_registry(archive, *target)
        except InputError:
            refused += 1
            assert not (tmp_path / str(at)).exists()
        else:
            with Registry.open(*target) as registry:
                assert contents(registry) == before
    assert refused > 20


def test_an_archive_from_before_there_were_keys_and_arrivals_has_none(
    archive: Path, written: Path, tmp_path: Path, database: str
) -> None:
    later = ("priority", "submitted_at", "spec", "backbone", "retries")

    def older(found: Entries) -> None:
        del found["tables/api_keys.jsonl"]
        positions = [json.loads(line) for line in found["tables/positions.jsonl"].splitlines()]
        lines = [{name: row[name] for name in row if name not in later} for row in positions]
        found["tables/positions.jsonl"] = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        tables = json.loads(found["manifest.json"])["tables"]
        tables["positions"]["sha256"] = sha256(found["tables/positions.jsonl"]).hexdigest()
        said(found, revision="0005", tables={name: rows for name, rows in tables.items() if name != "api_keys"})

    rewritten(archive, older)
    target = database, str(tmp_path / "new")
    restore_registry(archive, *target)
    with Registry.open(*target) as registry, make_registry(written) as before:
        assert contents(registry) == contents(before) | {"api_keys": []}
        assert registry.arrivals() == []


def test_an_empty_registry_goes_too(tmp_path: Path, database: str) -> None:
    with Registry.open(f"sqlite:///{tmp_path}/empty.db", str(tmp_path / "none")) as empty:
        assert dump_registry(empty, tmp_path / "archive.zip").blobs == 0
    restore_registry(tmp_path / "archive.zip", database, str(tmp_path / "blobs"))
    with Registry.open(database, str(tmp_path / "blobs")) as registry:
        assert registry.tasks() == []


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="No such file"):
        restore_registry(tmp_path / "none.zip", f"sqlite:///{tmp_path}/r.db", str(tmp_path / "blobs"))
