"""Schema migrations: they match the table definitions, and other schemas are refused."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from registry import Registry, SchemaError, dump_registry, find_damage, restore_registry, upgrade
from registry.schema import migrate, revisions
from registry.schema.base import Base
from registry.schema.connections import create_engine_for
from tasks.errors import InputError
from tests.helpers.databases import registry_url
from tests.helpers.fresh_processes import fresh_processes
from tests.helpers.registries import BACKBONE, accuracy, learn, make_registry, open_together

both = pytest.mark.usefixtures("database")
NEXT = '''"""Adds a table."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table("later", sa.Column("id", sa.Integer(), primary_key=True))
'''


@both
def test_migrations_create_what_a_new_registry_has(tmp_path: Path) -> None:
    engine = create_engine_for(registry_url(tmp_path))
    with engine.connect() as connection:
        command.upgrade(migrate.configuration(connection), "head")
        options = {"version_table": revisions.VERSION_TABLE}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata) == []
        migrated = schema_of(connection)
        connection.rollback()
    engine.dispose()
    with make_registry(tmp_path) as registry, registry.engine.connect() as connection:
        assert schema_of(connection) == migrated
        assert "alembic_version" not in inspect(connection).get_table_names()


def schema_of(connection: Connection) -> dict[str, Any]:
    """Return all that the database knows of its tables and views; columns in any order."""
    reflected: Any = inspect(connection)
    parts = ("columns", "foreign_keys", "unique_constraints", "check_constraints")
    tables = {
        table: {part: sorted(map(str, getattr(reflected, f"get_{part}")(table))) for part in parts}
        | {"key": reflected.get_pk_constraint(table), "indices": indices_of(connection, table)}
        for table in reflected.get_table_names()
    }
    return {"views": {name: reflected.get_view_definition(name) for name in reflected.get_view_names()}, **tables}


@both
def test_new_modes_of_scores_leave_the_indices_as_they_were(tmp_path: Path) -> None:
    engine = create_engine_for(registry_url(tmp_path))
    with engine.begin() as connection:
        migrate.migrate(connection, "0007")
        before = indices_of(connection, "scores", "strategy_scores")
    with engine.begin() as connection:
        migrate.migrate(connection, "0008")
        assert indices_of(connection, "scores", "strategy_scores") == before
    engine.dispose()
    with make_registry(tmp_path) as registry:
        learn(registry, "sst2")
        with registry.unit_of_work() as unit:
            unit.add_scores("sst2@1", [accuracy(0.3, mode="random_init"), accuracy(0.1, mode="calibration")])
        assert {"oracle", "random_init", "calibration"} == {score.mode for score in registry.scores(split="test")}


def indices_of(connection: Connection, *tables: str) -> dict[str | None, Any]:
    """Return columns and conditions of the indices of tables."""
    return {
        index["name"]: (
            index["unique"],
            index["column_names"],
            {option: str(value) for option, value in index.get("dialect_options", {}).items()},
        )
        for table in tables
        for index in inspect(connection).get_indexes(table)
    }


@both
def test_a_new_registry_can_be_opened_concurrently(tmp_path: Path) -> None:
    processes = fresh_processes()
    start = processes.Barrier(3)
    children = [processes.Process(target=open_together, args=(tmp_path, start)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]


def test_connections_to_a_new_file_wait_for_each_other(tmp_path: Path) -> None:
    def touch(name: str) -> None:
        engine = create_engine_for(f"sqlite:///{tmp_path}/{name}.db")
        together.wait()
        engine.connect().close()
        engine.dispose()

    together = Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        for trial in range(30):
            list(pool.map(touch, [str(trial)] * 8))


def test_sqlite_pragmas_are_set(tmp_path: Path) -> None:
    with make_registry(tmp_path) as registry, registry.engine.connect() as connection:
        pragmas = ("journal_mode", "foreign_keys", "busy_timeout")
        assert [connection.scalar(text(f"PRAGMA {name}")) for name in pragmas] == ["wal", 1, 30_000]


@both
def test_an_older_schema_is_refused_until_upgraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_registry(tmp_path).close()
    shutil.copytree(revisions.MIGRATIONS, tmp_path / "50% new")  # a place that a configuration file would trip over
    (tmp_path / "50% new/versions/0009_later.py").write_text(NEXT)
    monkeypatch.setattr(revisions, "MIGRATIONS", tmp_path / "50% new")
    with pytest.raises(SchemaError, match=r"revision 0008, older than this code's 0009. Run `continual db upgrade`"):
        make_registry(tmp_path)
    assert upgrade(registry_url(tmp_path)) == "0009"
    with make_registry(tmp_path) as registry:
        assert find_damage(registry) == []
        assert inspect(registry.engine).has_table("later")


def test_an_archive_of_an_older_schema_is_upgraded(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Registry.open(f"sqlite:///{tmp_path}/old.db", f"{tmp_path}/old") as registry:
        with registry.unit_of_work() as unit:
            unit.add_backbone(BACKBONE)
        learn(registry, "sst2")
        dump_registry(registry, tmp_path / "archive.zip")
    shutil.copytree(revisions.MIGRATIONS, tmp_path / "new")
    (tmp_path / "new/versions/0009_later.py").write_text(NEXT)
    monkeypatch.setattr(revisions, "MIGRATIONS", tmp_path / "new")
    assert restore_registry(tmp_path / "archive.zip", database, f"{tmp_path}/home/blobs").revision == "0008"
    with make_registry(tmp_path) as registry:
        assert find_damage(registry) == []
        assert [row["delta"] for row in registry.deltas()] == ["sst2@1"]
        assert inspect(registry.engine).has_table("later")


def test_an_archive_of_an_older_schema_does_not_fit_newer_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_registry(tmp_path) as registry:
        dump_registry(registry, tmp_path / "archive.zip")
    shutil.copytree(revisions.MIGRATIONS, tmp_path / "new")
    (tmp_path / "new/versions/0009_later.py").write_text(NEXT)
    monkeypatch.setattr(revisions, "MIGRATIONS", tmp_path / "new")
    upgrade(f"sqlite:///{tmp_path}/other.db")
    with pytest.raises(InputError, match=r"revision 0008, and this database has the tables of revision 0009"):
        restore_registry(tmp_path / "archive.zip", f"sqlite:///{tmp_path}/other.db", f"{tmp_path}/blobs")


def test_revisions_are_those_of_alembic() -> None:
    scripts = ScriptDirectory.from_config(migrate.configuration())
    assert revisions.known_revisions() == {script.revision for script in scripts.walk_revisions()}
    assert revisions.latest_revision() == scripts.get_current_head()


@both
def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    with make_registry(tmp_path) as registry, registry.engine.begin() as connection:
        connection.execute(text("UPDATE registry_version SET version_num = '9999'"))
    with pytest.raises(SchemaError, match="revision 9999, which this code does not know: its newest is 0008"):
        make_registry(tmp_path)
    with pytest.raises(SchemaError, match="Install the newer release"):
        upgrade(registry_url(tmp_path))


@both
def test_upgrade_creates_a_registry_and_is_idempotent(tmp_path: Path) -> None:
    assert upgrade(registry_url(tmp_path)) == upgrade(registry_url(tmp_path)) == "0008"


@both
def test_it_shares_a_database_with_another_alembic(tmp_path: Path) -> None:
    engine = create_engine_for(registry_url(tmp_path))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('theirs')"))
    engine.dispose()
    with make_registry(tmp_path) as registry, registry.engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "theirs"


@pytest.mark.parametrize("bad", ["nonsense", "oracel://here"])
def test_an_unusable_url_is_an_input_error(tmp_path: Path, bad: str) -> None:
    with pytest.raises(InputError, match="cannot be used"):
        Registry.open(bad, str(tmp_path))
