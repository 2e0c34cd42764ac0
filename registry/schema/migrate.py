"""Migration of a database to this code's schema revision, by Alembic."""

from collections.abc import Sequence

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, MetaData, Table
from sqlalchemy.exc import DatabaseError

from registry.errors import RegistryError
from registry.redaction import redact
from registry.schema import (
    revisions,
    tables,  # noqa: F401 (it fills Base.metadata)
)
from registry.schema.base import Base
from registry.schema.connections import (
    create_engine_for,
    migration_transaction,
    translate_connect_errors,
)
from registry.schema.migrations.views_0007 import views  # the newest
from registry.schema.revisions import (
    VERSION_TABLE,
    current_revision,
    database_revision,
    latest_revision,
    require_known_revision,
)


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
            revision = database_revision(engine)
        if revision is not None:
            require_known_revision(revision)
        migrate_to_newest(engine)
        return str(database_revision(engine))
    except DatabaseError as error:
        why = redact(f"could not upgrade {url}: {error.orig}", url)
        raise RegistryError(f"{why}. Restore the database from a copy.") from None  # the cause may quote the URL
    finally:
        engine.dispose()


def migrate(connection: Connection, to: str | None = None) -> None:
    """Create the schema of revision `to`, by default the newest, or migrate it, in the connection's transaction."""
    there, to = current_revision(connection), to or latest_revision()
    if there is None and to == latest_revision():
        _create(connection)
    elif there != to:
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


def configuration(connection: Connection | None = None) -> Config:
    """Return Alembic's configuration, built in code so that it works in an installed wheel.

    With a connection, it can also generate a migration:
    `alembic.command.revision(configuration(connection), "…", autogenerate=True)`.
    """
    config = Config()
    config.set_main_option("script_location", str(revisions.MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def migrate_to_newest(engine: Engine) -> None:
    """Create or migrate the schema of a database."""
    # One transaction: controllers that open a new registry together make it once, and a kill leaves nothing.
    with migration_transaction(engine) as connection:
        migrate(connection)


def _create(connection: Connection) -> None:
    """Create the newest schema at once, which takes a tenth of the time of all migrations."""
    Base.metadata.create_all(connection)
    for name, query in views(connection.dialect.name).items():
        connection.exec_driver_sql(f"CREATE VIEW {name} AS {query}")
    command.stamp(configuration(connection), "head")
