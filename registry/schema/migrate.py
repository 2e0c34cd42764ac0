"""Which schema a database has, and how it gets this code's."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DatabaseError

from registry.errors import RegistryError, SchemaError
from registry.redaction import redact
from registry.schema.connections import create_engine_for, migration_transaction, translate_connect_errors

MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "registry_version"  # MLflow owns `alembic_version`, and both may live in one database


def ensure_schema(engine: Engine) -> None:
    """Creates the schema in a database that has none; otherwise makes sure that it is this code's.

    Raises: SchemaError, where it is older or newer.
    """
    found = _found(engine)
    if found is None:
        _migrate(engine)
    elif found != latest_revision():
        require_known_revision(found)
        raise SchemaError(
            f"the registry's schema is at revision {found}, older than this code's {latest_revision()}. "
            "Run `continual db upgrade`."
        )


def upgrade(url: str) -> str:
    """Brings the database at `url` to this code's schema, creating it where there is none; returns the revision.

    Raises: SchemaError, where it is newer; DatabaseUnavailable, where it does not answer.
    """
    engine = create_engine_for(url)
    try:
        with translate_connect_errors(url):
            found = _found(engine)
        if found is not None:
            require_known_revision(found)
        _migrate(engine)
        return str(_found(engine))
    except DatabaseError as error:
        why = redact(f"could not upgrade {url}: {error.orig}", url)
        raise RegistryError(f"{why}. Restore the database from a copy.") from None  # its cause may quote the URL
    finally:
        engine.dispose()


def current_revision(connection: Connection) -> str | None:
    """The revision that the database is at; None where the registry was never in it."""
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def latest_revision() -> str:
    """The revision of this code's schema."""
    return str(_scripts().get_current_head())


def migrate(connection: Connection, to: str = "head") -> None:
    """Brings the schema to a revision, in the transaction that `connection` is in."""
    command.upgrade(configuration(connection), to)


def require_known_revision(found: str) -> None:
    """Raises SchemaError for a revision that this code does not know."""
    if found not in {script.revision for script in _scripts().walk_revisions()}:
        raise SchemaError(
            f"the registry's schema is at revision {found}, which this code does not know: its newest is "
            f"{latest_revision()}. Install the newer release that wrote it, or use another registry."
        )


def configuration(connection: Connection | None = None) -> Config:
    """Alembic's settings, built here so that they also hold in an installed wheel.

    With a connection it also drafts: `alembic.command.revision(configuration(connection), "…", autogenerate=True)`.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(configuration())


def _migrate(engine: Engine) -> None:
    # One transaction: controllers that open a new registry together make it once, and a kill leaves nothing.
    with migration_transaction(engine) as connection:
        migrate(connection)


def _found(engine: Engine) -> str | None:
    with engine.connect() as connection:
        return current_revision(connection)
