"""Archives of a registry: lossless between both databases, consistent, and refused where damaged."""

import json
import shutil
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_LZMA, ZipFile, ZipInfo

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
from registry.operations.archive import MAX_LINE_BYTES
from registry.reads.blob_references import referenced_blobs
from registry.schema.base import Base
from registry.schema.tables import Checkpoint
from tasks.errors import InputError
from tests.helpers.claims import claim_position
from tests.helpers.databases import registry_url
from tests.helpers.registries import accuracy, begin, learn, make_registry


def fill(registry: Registry) -> None:
    """Insert rows into every table, with values that a careless format would change."""
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
    """Return every row of every table, and every referenced blob."""
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
    """A folder with a registry in SQLite and its archive; tests must not change it."""
    folder = tmp_path_factory.mktemp("written")
    with make_registry(folder) as registry:
        fill(registry)
        dump_registry(registry, folder / "archive.zip")
    return folder


@pytest.fixture
def archive(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(written / "archive.zip", tmp_path))


def test_an_archive_is_lossless_between_databases(tmp_path: Path, postgres_url: str) -> None:
    with make_registry(tmp_path / "first") as first:
        fill(first)
        before = contents(first)
        dump_registry(first, tmp_path / "1.zip")
    restore_registry(tmp_path / "1.zip", postgres_url, str(tmp_path / "second"), with_keys=True)
    with Registry.open(postgres_url, str(tmp_path / "second")) as second:
        assert contents(second) == before
        assert find_damage(second) == []
        dump_registry(second, tmp_path / "2.zip")
    last = f"sqlite:///{tmp_path}/third.db", str(tmp_path / "third")
    restore_registry(tmp_path / "2.zip", *last, with_keys=True)
    with Registry.open(*last) as third:
        assert contents(third) == before
    with ZipFile(tmp_path / "1.zip") as archive_1, ZipFile(tmp_path / "2.zip") as archive_2:
        names = set(archive_1.namelist()) - {"manifest.json"}
        assert {name: archive_1.read(name) for name in names} == {name: archive_2.read(name) for name in names}


def test_a_restored_registry_can_be_continued(archive: Path, tmp_path: Path, database: str) -> None:
    """New ids continue after the restored ones, and waiting positions still wait."""
    restore_registry(archive, database, str(tmp_path / "home/blobs"))
    with make_registry(tmp_path) as registry:
        assert learn(registry, "sst2") == "sst2@3"
        assert learn(registry, "new") == "new@1"
        begin(registry, "new", name="other")
        assert claim_position(registry, "core", number=2, holder="far:1:3")
        assert find_damage(registry) == []


def test_an_archive_is_a_snapshot_under_concurrent_writes(
    filled: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task is registered after each table is written: none of it is in the archive."""
    before, real, number = contents(filled), ZipFile.open, iter(range(100))

    def write(*arguments: Any, **options: Any) -> Any:
        writer = threading.Thread(target=learn, args=(filled, f"late{next(number)}"))
        writer.start()
        writer.join()
        return real(*arguments, **options)

    monkeypatch.setattr(ZipFile, "open", write)
    dump_registry(filled, tmp_path / "archive.zip")
    monkeypatch.undo()
    assert len(filled.tasks()) > 1
    target = f"sqlite:///{tmp_path}/other.db", str(tmp_path / "other")
    restore_registry(tmp_path / "archive.zip", *target, with_keys=True)
    with Registry.open(*target) as restored:
        assert contents(restored) == before


def test_restoring_into_a_nonempty_registry_is_refused(filled: Registry, tmp_path: Path) -> None:
    before = contents(filled)
    dump_registry(filled, tmp_path / "archive.zip")
    url = registry_url(tmp_path)
    with pytest.raises(InputError, match="the registry is not empty: it has"):
        restore_registry(tmp_path / "archive.zip", url, str(tmp_path / "home/blobs"))
    assert contents(filled) == before


def test_an_existing_file_is_not_overwritten(filled: Registry, tmp_path: Path) -> None:
    (tmp_path / "archive.zip").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        dump_registry(filled, tmp_path / "archive.zip")
    with pytest.raises(InputError, match="cannot be written"):
        dump_registry(filled, tmp_path / "no such folder" / "archive.zip")
    assert (tmp_path / "archive.zip").read_text() == "mine"


def test_a_damaged_blob_stops_a_dump_without_leftovers(filled: Registry, tmp_path: Path) -> None:
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
    """Rewrite the archive with changed entries and valid zip checksums."""
    contents = entries(archive)
    change(contents)
    with ZipFile(archive, "w") as opened:
        for name, data in contents.items():
            opened.writestr(ZipInfo(name), data)


def forged(contents: Entries, table: str, change: Callable[[bytes], bytes]) -> None:
    """Change a table's rows and update the manifest accordingly."""
    name, manifest = f"tables/{table}.jsonl", json.loads(contents["manifest.json"])
    contents[name] = change(contents[name])
    manifest["tables"][table] = {"rows": contents[name].count(b"\n"), "sha256": sha256(contents[name]).hexdigest()}
    contents["manifest.json"] = json.dumps(manifest).encode()


def a_blob(contents: Entries) -> str:
    return next(name for name in contents if name.startswith("blobs/"))


def with_manifest(contents: Entries, **changes: Any) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(contents["manifest.json"]) | changes
    contents["manifest.json"] = json.dumps(manifest).encode()
    return manifest


TAMPERED: dict[str, tuple[Callable[[Entries], object], str]] = {
    "a row": (lambda contents: contents.update({"tables/tasks.jsonl": b"{}\n"}), "rows of tasks are not those"),
    "no table": (lambda contents: contents.pop("tables/deltas.jsonl"), "is missing in it"),
    "a blob": (lambda contents: contents.update({a_blob(contents): b"other"}), "has other bytes"),
    "no blob": (lambda contents: contents.pop(a_blob(contents)), "blobs of"),
    "a blob more": (lambda contents: contents.update({f"blobs/{sha256(b'x').hexdigest()}": b"x"}), "blobs of"),
    "a path": (lambda contents: contents.update({"../../evil": b"x"}), "does not belong there"),
    "a blob's path": (lambda contents: contents.update({"blobs/../../evil": b"x"}), "does not belong there"),
    "no manifest": (lambda contents: contents.pop("manifest.json"), r"no manifest\.json"),
    "a list": (lambda contents: contents.update({"manifest.json": b"[]"}), "wrong values"),
    "no JSON": (lambda contents: contents.update({"manifest.json": b"{"}), "not a whole archive"),
    "a newer one": (lambda contents: with_manifest(contents, format=9), "archive of format 9"),
    "a newer schema": (lambda contents: with_manifest(contents, revision="9999"), "does not know"),
    "another table": (
        lambda contents: with_manifest(contents, tables={"sqlite_master": {"rows": 0, "sha256": ""}}),
        "missing in it",
    ),
    "an unnamed blob": (
        lambda contents: (
            with_manifest(contents, blobs=json.loads(contents["manifest.json"])["blobs"] + 1),
            contents.update({f"blobs/{sha256(b'x').hexdigest()}": b"x"}),
        ),
        "or no row of it names it",
    ),
    "forged columns": (lambda contents: forged(contents, "tasks", lambda rows: b'{"id": 1}\n'), "a row of tasks has"),
    "forged rows": (lambda contents: forged(contents, "tasks", lambda rows: b"[1]\n"), "line 1 of tasks is no row"),
    "a forged moment": (
        lambda contents: forged(
            contents, "backbones", lambda rows: rows.replace(b'"created_at": "20', b'"created_at": "x')
        ),
        "invalid time",
    ),
    "rows twice": (lambda contents: forged(contents, "tasks", lambda rows: rows + rows), "could not be restored"),
    "lost rows": (
        lambda contents: forged(contents, "tasks", lambda rows: b""),
        "could not be restored|no row of it names",
    ),
}


@pytest.mark.parametrize("harm", TAMPERED)
def test_a_tampered_archive_is_refused_without_leftovers(
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


def first_row(table: str, **changes: Any) -> Callable[[Entries], None]:
    """Return a change of values in a table's first row."""

    def change(contents: Entries) -> None:
        def rewrite(rows: bytes) -> bytes:
            first, *rest = rows.splitlines(keepends=True)
            return json.dumps(json.loads(first) | changes).encode() + b"\n" + b"".join(rest)

        forged(contents, table, rewrite)

    return change


def appended(table: str, line: bytes) -> Callable[[Entries], None]:
    return lambda contents: forged(contents, table, lambda rows: rows + line + b"\n")


def miscounted(contents: Entries) -> None:
    tables = json.loads(contents["manifest.json"])["tables"]
    tables["deltas"]["rows"] += 1
    with_manifest(contents, tables=tables)


REFUSED: dict[str, tuple[Callable[[Entries], object], str]] = {
    "a wrong count": (miscounted, r"tables/deltas\.jsonl has 2 rows, and the manifest says 3"),
    "an id twice": (
        lambda contents: forged(contents, "deltas", lambda rows: rows + rows.splitlines(keepends=True)[0]),
        r"tables/deltas\.jsonl, line 3 of deltas is no row: its id 1 is there already",
    ),
    "a text for an id": (first_row("tasks", id="1"), r"line 1 of tasks is no row: its id '1' is no integer"),
    "a huge id": (first_row("tasks", id=2**63), "no integer of 8 bytes"),
    "truth for a number": (first_row("deltas", share=True), "its share 'True' is no integer"),
    "a list for a text": (first_row("tasks", name=["sst2"]), "its name .* is no text"),
    "half a character": (first_row("tasks", name="\ud800"), "half a surrogate pair"),
    "null for a value": (first_row("tasks", kind=None), "its kind is null"),
    "a number for a time": (first_row("tasks", created_at=5), "its created_at '5' is an invalid time"),
    "a column more": (first_row("tasks", evil=1), "a row of tasks has .* this one has besides 'evil'"),
    "no such parent": (first_row("lineage", parent_id=7), r"line 1 of lineage is no row: its parent_id 7 is no row of"),
    "a list": (appended("tasks", b"[[1, 2]]"), "of type list, not an object"),
    "no JSON": (appended("tasks", b'{"id": 1'), "line 2 of tasks is no row"),
    "deep nesting": (appended("tasks", b"[" * 100_000), "line 2 of tasks is no row"),
    "an endless line": (appended("tasks", b" " * (MAX_LINE_BYTES + 1)), "more than 16,777,216 bytes"),
    "a deep manifest": (lambda contents: contents.update({"manifest.json": b"[" * 100_000}), "not a whole archive"),
}


@pytest.mark.parametrize("harm", REFUSED)
def test_rows_that_do_not_fit_are_refused_by_member_and_line(harm: str, archive: Path, tmp_path: Path) -> None:
    change, message = REFUSED[harm]
    rewritten(archive, change)
    with pytest.raises(ArchiveError, match=message):
        restore_registry(archive, f"sqlite:///{tmp_path}/new/registry.db", str(tmp_path / "new/blobs"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("member", ["tables/tasks.jsonl", "manifest.json", "blobs/" + "0" * 64])
def test_an_entry_that_unpacks_to_very_much_is_refused_unread(member: str, archive: Path, tmp_path: Path) -> None:
    contents = entries(archive)
    contents[member] = bytes(1 << 24)
    with ZipFile(archive, "w", ZIP_DEFLATED) as opened:
        for name, data in contents.items():
            opened.writestr(name, data)
    del contents
    tracemalloc.start()
    with pytest.raises(ArchiveError, match=r"would unpack from [\d,]+ bytes to 16,777,216"):
        restore_registry(archive, f"sqlite:///{tmp_path}/new/registry.db", str(tmp_path / "new/blobs"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 22
    assert not (tmp_path / "new").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_is_there_twice_or_packed_otherwise_is_refused(archive: Path, tmp_path: Path) -> None:
    target = f"sqlite:///{tmp_path}/new/registry.db", str(tmp_path / "new/blobs")
    contents = entries(archive)
    with ZipFile(archive, "a") as opened:
        opened.writestr("manifest.json", contents["manifest.json"])
    with pytest.raises(ArchiveError, match="or one twice"):
        restore_registry(archive, *target)
    with ZipFile(archive, "w", ZIP_LZMA) as opened:
        for name, data in contents.items():
            opened.writestr(name, data)
    with pytest.raises(ArchiveError, match="packed by method 14"):
        restore_registry(archive, *target)


def test_json_columns_of_any_shape_give_no_traceback(archive: Path, tmp_path: Path) -> None:
    nested: Any = []
    for _ in range(100):
        nested = [nested]
    rewritten(archive, first_row("tasks", labels=nested, spec="text", fingerprints=[1, 2.5], rows={"train": 10**30}))
    target = f"sqlite:///{tmp_path}/new/registry.db", str(tmp_path / "new/blobs")
    restore_registry(archive, *target)
    with Registry.open(*target) as registry, suppress(InputError):  # damage, which `verify` reports
        assert registry.task("sst2").name == "sst2"


def test_planted_keys_are_revoked_unless_wanted(archive: Path, tmp_path: Path, database: str) -> None:
    """A key in a file of others would open the server to them, and having no key would open a local server to all."""
    for name, with_keys in (("without", False), ("with", True)):
        url = database if with_keys else f"sqlite:///{tmp_path}/{name}.db"
        restore_registry(archive, url, str(tmp_path / name), with_keys=with_keys)
        with Registry.open(url, str(tmp_path / name)) as registry:
            assert [name for name, _ in registry.active_keys().values()] == (["ops"] if with_keys else [])
            assert registry.has_keys()
            assert add_key(registry, "new", role="read")


@pytest.mark.parametrize("size", [0, 1, 1000, -1, -200])
def test_a_truncated_archive_is_refused(size: int, archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:size])
    with pytest.raises(ArchiveError, match="not a whole archive"):
        restore_registry(archive, f"sqlite:///{tmp_path}/new/registry.db", str(tmp_path / "new/blobs"))
    assert not (tmp_path / "new").exists()


def test_every_flipped_byte_is_detected_or_harmless(written: Path, archive: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    with make_registry(written) as registry:
        before = contents(registry)
    refused, step = 0, len(whole) // 40
    for offset in range(0, len(whole), step):
        archive.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0x10]) + whole[offset + 1 :])
        target = f"sqlite:///{tmp_path}/{offset}/registry.db", f"{tmp_path}/{offset}/blobs"
        try:
            restore_registry(archive, *target, with_keys=True)
        except InputError:
            refused += 1
            assert not (tmp_path / str(offset)).exists()
        else:
            with Registry.open(*target) as registry:
                assert contents(registry) == before
    assert refused > 20


def test_an_archive_older_than_keys_and_arrivals_has_none(
    archive: Path, written: Path, tmp_path: Path, database: str
) -> None:
    later = ("priority", "submitted_at", "spec", "backbone", "retries")

    def older(archived: Entries) -> None:
        del archived["tables/api_keys.jsonl"]
        positions = [json.loads(line) for line in archived["tables/positions.jsonl"].splitlines()]
        lines = [{name: row[name] for name in row if name not in later} for row in positions]
        archived["tables/positions.jsonl"] = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        tables = json.loads(archived["manifest.json"])["tables"]
        tables["positions"]["sha256"] = sha256(archived["tables/positions.jsonl"]).hexdigest()
        with_manifest(
            archived, revision="0005", tables={name: rows for name, rows in tables.items() if name != "api_keys"}
        )

    rewritten(archive, older)
    target = database, str(tmp_path / "new")
    restore_registry(archive, *target, with_keys=True)
    with Registry.open(*target) as registry, make_registry(written) as before:
        assert contents(registry) == contents(before) | {"api_keys": []}
        assert registry.arrivals() == []


def test_an_empty_registry_can_be_archived(tmp_path: Path, database: str) -> None:
    with Registry.open(f"sqlite:///{tmp_path}/empty.db", str(tmp_path / "none")) as empty:
        assert dump_registry(empty, tmp_path / "archive.zip").blobs == 0
    restore_registry(tmp_path / "archive.zip", database, str(tmp_path / "blobs"))
    with Registry.open(database, str(tmp_path / "blobs")) as registry:
        assert registry.tasks() == []


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="No such file"):
        restore_registry(tmp_path / "none.zip", f"sqlite:///{tmp_path}/r.db", str(tmp_path / "blobs"))
