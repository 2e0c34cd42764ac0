"""Verification of a registry: every kind of damage is reported, and a sound one has none."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from registry import Registry, StoredDelta, find_damage, warnings
from tests.helpers.claims import claim_position
from tests.helpers.registries import begin, digest_of, learn, make_registry

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
