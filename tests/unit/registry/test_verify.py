"""Verification of a registry: every kind of damage is reported, and a sound one has none."""

import os
import random
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from registry import DatabaseDamaged, Registry, StoredDelta, file_damage, find_damage, warnings
from tasks.errors import ContinualError
from tests.helpers.claims import claim_position
from tests.helpers.registries import BACKBONE, begin, digest_of, learn, make_registry

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with make_registry(tmp_path) as opened:
        answers = opened.blobs.put(b"answers")
        learn(opened, "sst2", predictions=answers)
        learn(opened, "sst2")
        begin(opened, "sst2")
        with opened.unit_of_work() as unit:
            unit.mark_learned("core", 0, delta="sst2@1")
        yield opened


def damage(registry: Registry, *statements: str) -> None:
    """Change rows by SQL alone, without the registry's rules."""
    sqlite = registry.engine.dialect.name == "sqlite"
    lax = ("PRAGMA foreign_keys = OFF",) if sqlite else ("SET session_replication_role = replica",)
    strict = ("PRAGMA foreign_keys = ON",) if sqlite else ("SET session_replication_role = DEFAULT", "COMMIT")
    with registry.engine.connect() as connection:
        raw = connection.connection.cursor()
        for statement in (*lax, *statements, *strict):
            raw.execute(statement)


def test_a_sound_registry_has_no_findings(registry: Registry) -> None:
    assert find_damage(registry) == []


@pytest.mark.parametrize(
    ("content", "owners"),
    [
        (b"sst2", ["sst2@1, its values", "sst2@2, its values"]),
        (b"answers", ["sst2@1, its predictions"]),
        (b"signature", ["sst2@1, its signature", "sst2@2, its signature"]),
    ],
)
@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_damaged_blobs_are_reported(registry: Registry, content: bytes, owners: list[str], harm: str) -> None:
    digest = registry.blobs.put(content)
    place = Path(registry.blobs.path(digest))
    place.unlink() if harm == "missing" else place.write_bytes(b"other")
    problems = find_damage(registry)
    assert [line.split(": ")[0] for line in problems] == owners
    assert all(f"blob {digest} is {harm}" in line for line in problems)


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("UPDATE scores SET delta_id = 77 WHERE id = 2", "scores row 2: delta_id 77 is no row of deltas"),
        ("UPDATE positions SET task_id = 77", "positions row 1: task_id 77 is no row of tasks"),
        (
            "UPDATE positions SET delta_id = NULL",
            "stream core, position 0: sst2 is marked as learned, but names no delta",
        ),
        ("DELETE FROM scores WHERE id = 1", "sst2@1: no oracle score on the test split"),
        (
            "UPDATE positions SET task_name = 'trec'",
            "stream core, position 0: trec is marked as learned, but names sst2@1",
        ),
        (
            "UPDATE positions SET state = 'waiting'",
            "stream core, position 0: sst2 is marked as waiting, but names sst2@1",
        ),
        (
            "INSERT INTO outbox (message, subject, due_at, created_at) "
            "VALUES ('delta', 'gone@1', CURRENT_TIMESTAMP, CURRENT_TIMESTAMP)",
            "a message for MLflow is about delta gone@1, which is not registered",
        ),
    ],
)
def test_invalid_rows_are_reported(registry: Registry, statement: str, finding: str) -> None:
    damage(registry, statement)
    assert find_damage(registry) == [finding]


def test_two_champions_are_reported(registry: Registry) -> None:
    damage(registry, "DROP INDEX uq_deltas_champion", "UPDATE deltas SET status = 'champion'")
    assert find_damage(registry) == ["task sst2: 2 champions on backbone tiny, where one may serve"]


def test_harmless_findings_are_warnings(registry: Registry) -> None:
    begin(registry, "sst2", "trec")
    assert claim_position(registry, "core", number=1, holder="far:1:2")
    assert warnings(registry) == []
    old = registry.blobs.put(b"nobody's")
    registry.blobs.put(b"young")
    os.utime(registry.blobs.path(old), (0, 0))
    os.utime(registry.blobs.path(digest_of(registry, "sst2@1")), (0, 0))
    checkpoint = registry.blobs.put(b"checkpoint")
    long_ago = "lease_until = '2020-01-01 00:00:00'"
    values = f"(1, 2, '{checkpoint}', CURRENT_TIMESTAMP)"
    damage(
        registry,
        f"UPDATE positions SET {long_ago} WHERE number = 1",
        f"INSERT INTO checkpoints (position_id, epoch, digest, created_at) VALUES {values}",
    )
    assert find_damage(registry) == []
    assert [note.split(";")[0] for note in warnings(registry)] == [
        "stream core, position 1: far:1:2 has held trec since before its lease ended",
        "stream core, position 0: learned, and its checkpoint is still kept",
        "1 blobs of 8 bytes are named by no row",
    ]


def test_purged_deltas_reference_no_blobs(registry: Registry) -> None:
    damage(registry, "UPDATE deltas SET status = 'purged', digest = NULL WHERE version = 1")
    assert "sst2@1, its predictions: referenced by a purged delta" in find_damage(registry)


def test_extra_checks_see_intact_blobs_only(registry: Registry) -> None:
    checked = {}

    def look(delta: StoredDelta, blobs: Mapping[str, bytes]) -> list[str]:
        checked[delta.name] = sorted(blobs)
        return ["odd"]

    Path(registry.blobs.path(registry.delta("sst2@1").predictions or "")).unlink()
    problems = find_damage(registry, look)
    assert {name: "values" in parts and "predictions" not in parts for name, parts in checked.items()} == dict.fromkeys(
        checked, True
    )
    assert [line for line in problems if line.endswith("odd")] == ["sst2@1: odd", "sst2@2: odd"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE tasks SET labels = '[\"no'",
        "UPDATE deltas SET settings = 'nothing'",
        "UPDATE deltas SET created_at = 'yesterday'",
        "UPDATE tasks SET name = CAST(X'ff00ff' AS TEXT)",
        "DROP TABLE deltas",
    ],
)
def test_rows_that_cannot_be_read_are_reported(tmp_path: Path, statement: str) -> None:
    with Registry.open(f"sqlite:///{tmp_path}/registry.db", f"{tmp_path}/blobs") as registry:
        with registry.unit_of_work() as unit:
            unit.add_backbone(BACKBONE)
        learn(registry, "sst2")
        damage(registry, statement)
        assert any("cannot be read" in problem for problem in find_damage(registry))
        warnings(registry)
        with pytest.raises(DatabaseDamaged, match=f"{tmp_path}/registry.db is damaged.*continual verify"):
            [registry.tasks(), registry.deltas()]


@pytest.mark.parametrize(
    ("table", "column", "value", "expected"),
    [
        ("scores", "value", "'high'", "a number"),
        ("scores", "rows", "X'ff00'", "an integer"),
        ("tasks", "labels", "'{}'", "a JSON array"),
        ("tasks", "spec", "'[]'", "a JSON object"),
        ("deltas", "settings", "'null'", "a JSON object"),
        ("deltas", "tried", f"'{'[' * 5000}'", "a JSON array"),
        ("deltas", "data", "7", "a JSON object"),
        ("deltas", "method", "X'ff00'", "a text"),
        ("tasks", "created_at", "1.5", "a text"),
    ],
)
def test_values_of_another_type_are_damage(tmp_path: Path, table: str, column: str, value: str, expected: str) -> None:
    """SQLite keeps them, and its own check finds them sound."""
    with Registry.open(f"sqlite:///{tmp_path}/registry.db", f"{tmp_path}/blobs") as registry:
        with registry.unit_of_work() as unit:
            unit.add_backbone(BACKBONE)
        learn(registry, "sst2")
        assert file_damage(registry.url) == []
        damage(registry, f"UPDATE {table} SET {column} = {value} WHERE id = 1")
        (problem,) = file_damage(registry.url)
    assert problem.endswith(f"{table} row 1: {column} is not {expected}")


def test_a_schema_that_is_not_utf_8_is_damage(tmp_path: Path) -> None:
    """SQLite quotes it in its message, which Python cannot decode."""
    url, file = f"sqlite:///{tmp_path}/registry.db", tmp_path / "registry.db"
    Registry.open(url, f"{tmp_path}/blobs").close()
    content = file.read_bytes()
    assert b"CREATE TABLE tasks" in content
    file.write_bytes(content.replace(b"CREATE TABLE tasks", b"CREATE T\xc7BLE t\xffsks"))
    assert len(file_damage(url)) == 1
    with pytest.raises(DatabaseDamaged), Registry.open(url, f"{tmp_path}/blobs") as registry:
        registry.tasks()


def test_a_file_damaged_anywhere_gives_a_message_and_is_reported(tmp_path: Path) -> None:
    """Every page is overwritten in turn: no command ends in a traceback."""
    sound = tmp_path / "sound.db"
    with Registry.open(f"sqlite:///{sound}", f"{tmp_path}/blobs") as registry:
        with registry.unit_of_work() as unit:
            unit.add_backbone(BACKBONE)
        learn(registry, "sst2")
    with closing(sqlite3.connect(sound)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (unused,) = connection.execute("PRAGMA freelist_count").fetchone()
    content, draw = sound.read_bytes(), random.Random(0)
    place = tmp_path / "registry.db"
    reported, messages = 0, list[str]()
    for start in range(0, len(content), 4096):
        noise = draw.randbytes(4096)
        place.write_bytes(content[:start] + noise + content[start + 4096 :])
        for suffix in ("-wal", "-shm"):
            place.with_name(f"registry.db{suffix}").unlink(missing_ok=True)
        reported += bool(file_damage(f"sqlite:///{place}"))
        try:
            with Registry.open(f"sqlite:///{place}", f"{tmp_path}/blobs") as registry:
                find_damage(registry)
                warnings(registry)
                registry.tasks()
                registry.deltas()
        except ContinualError as error:
            messages.append(str(error))
    assert all(str(place) in message for message in messages)
    assert reported >= len(content) // 4096 - unused
