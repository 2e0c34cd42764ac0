"""The schema revisions of a database and of this code, read without Alembic, which starts slowly."""

from pathlib import Path

from sqlalchemy import Connection, Engine, Text, column, inspect, select, table

from registry.errors import SchemaError
from registry.schema.connections import damaged_error

MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "registry_version"  # MLflow owns `alembic_version`, and both may live in one database


def latest_revision() -> str:
    """Return this code's schema revision, which the name of its newest migration begins with."""
    return max(known_revisions())


def known_revisions() -> set[str]:
    """Return the revisions that this code can migrate from."""
    return {file.name.partition("_")[0] for file in (MIGRATIONS / "versions").glob("[0-9]*_*.py")}


def current_revision(connection: Connection) -> str | None:
    """Return the database's schema revision; None if it has no registry.

    Raises:
        DatabaseDamaged: It states several, or none that is a text.
    """
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    query = select(column("version_num", Text)).select_from(table(VERSION_TABLE))
    revisions = connection.scalars(query).all()
    if len(revisions) > 1 or not all(isinstance(revision, str) for revision in revisions):
        url = connection.engine.url.render_as_string(hide_password=False)
        raise damaged_error(url, f"its schema has the revisions {revisions}, where one is stored")
    return revisions[0] if revisions else None


def database_revision(engine: Engine) -> str | None:
    """Return the database's schema revision; None if it has no registry.

    Raises:
        DatabaseDamaged: It states several, or none that is a text.
    """
    with engine.connect() as connection:
        return current_revision(connection)


def require_latest_revision(revision: str) -> None:
    """Check that a database's `revision` is this code's.

    Raises:
        SchemaError: It is older or newer.
    """
    if revision != latest_revision():
        require_known_revision(revision)
        raise SchemaError(
            f"the registry's schema is at revision {revision}, older than this code's {latest_revision()}. "
            "Run `continual db upgrade`."
        )


def require_known_revision(revision: str) -> None:
    """Check that `revision` is one of this code's.

    Raises:
        SchemaError: It is not; a newer release wrote it.
    """
    if revision not in known_revisions():
        raise SchemaError(
            f"the registry's schema is at revision {revision}, which this code does not know: its newest is "
            f"{latest_revision()}. Install the newer release that wrote it, or use another registry."
        )
