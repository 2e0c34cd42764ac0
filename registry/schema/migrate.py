"""The schema revision of a database, and migration to this code's revision."""

from collections.abc import Sequence
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, MetaData, Table
from sqlalchemy.exc import DatabaseError

from registry.errors import RegistryError, SchemaError
from registry.redaction import redact
from registry.schema import tables  # noqa: F401 (it fills Base.metadata)
from registry.schema.base import Base
from registry.schema.connections import (
    create_engine_for,
    damaged_error,
    migration_transaction,
    translate_connect_errors,
)
from registry.schema.migrations.views_0007 import views  # the newest

MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "registry_version"  # MLflow owns `alembic_version`, and both may live in one database


def ensure_schema(engine: Engine) -> None:
    """Create the schema in an empty database; otherwise check that it is this code's.

    Raises:
        SchemaError: The schema is older or newer.
    """
    revision = _database_revision(engine)
    if revision is None:
        _migrate(engine)
    elif revision != latest_revision():
        require_known_revision(revision)
        raise SchemaError(
            f"the registry's schema is at revision {revision}, older than this code's {latest_revision()}. "
            "Run `continual db upgrade`."
        )


def has_schema(engine: Engine) -> bool:
    """Return whether the database has a registry's tables, of any revision."""
    return _database_revision(engine) is not None


def upgrade(url: str) -> str:
    """Migrate the database at `url` to this code's schema, creating it if missing; return the revision.

    Raises:
        SchemaError: The schema is newer than this code's.
        DatabaseUnavailable: The database does not answer.
        RegistryError: The migration failed.
    """
    engine = create_engine_for(url)
    try:
        with translate_connect_errors(url):
            revision = _database_revision(engine)
        if revision is not None:
            require_known_revision(revision)
        _migrate(engine)
        return str(_database_revision(engine))
    except DatabaseError as error:
        why = redact(f"could not upgrade {url}: {error.orig}", url)
        raise RegistryError(f"{why}. Restore the database from a copy.") from None  # the cause may quote the URL
    finally:
        engine.dispose()


def current_revision(connection: Connection) -> str | None:
    """Return the database's schema revision; None if it has no registry."""
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def latest_revision() -> str:
    """Return this code's schema revision."""
    return str(_scripts().get_current_head())


def migrate(connection: Connection, to: str = "head") -> None:
    """Run the migrations up to revision `to` in the connection's transaction."""
    command.upgrade(configuration(connection), to)


def tables_of(revision: str) -> Sequence[Table]:
    """Return the tables of a known revision, each after those it references."""
    if revision == latest_revision():
        return Base.metadata.sorted_tables
    engine, metadata = create_engine_for("sqlite://"), MetaData()
    try:
        with engine.begin() as connection:
            migrate(connection, revision)
            metadata.reflect(connection, only=lambda name, _: name != VERSION_TABLE)
    finally:
        engine.dispose()
    return metadata.sorted_tables


def require_known_revision(revision: str) -> None:
    """Check that `revision` is one of this code's.

    Raises:
        SchemaError: It does not; a newer release wrote it.
    """
    if revision not in {script.revision for script in _scripts().walk_revisions()}:
        raise SchemaError(
            f"the registry's schema is at revision {revision}, which this code does not know: its newest is "
            f"{latest_revision()}. Install the newer release that wrote it, or use another registry."
        )


def configuration(connection: Connection | None = None) -> Config:
    """Return Alembic's configuration, built in code so that it works in an installed wheel.

    With a connection, it can also generate a migration:
    `alembic.command.revision(configuration(connection), "…", autogenerate=True)`.
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
        if current_revision(connection) is None:
            _create(connection)
        else:
            migrate(connection)


def _create(connection: Connection) -> None:
    """Create the newest schema at once, which takes a tenth of the time of all migrations."""
    Base.metadata.create_all(connection)
    for name, query in views(connection.dialect.name).items():
        connection.exec_driver_sql(f"CREATE VIEW {name} AS {query}")
    command.stamp(configuration(connection), "head")


def _database_revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
        try:
            return current_revision(connection)
        except (CommandError, TypeError, ValueError) as error:  # several revisions, or none that is a text
            raise damaged_error(engine.url.render_as_string(hide_password=False), error) from error
