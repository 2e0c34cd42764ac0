"""Database connections: the only module that distinguishes between databases."""

import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, Table, create_engine, event, func, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session

from registry.errors import DatabaseDamaged, DatabaseUnavailable, RegistryError
from registry.redaction import redact
from tasks.errors import InputError

BUSY_SECONDS = 30
RECONNECT_TIMEOUT = 100.0  # seconds to wait for a restarting database; shorter than the lease on a position
RETRY_SECONDS = 0.5
_WRITES = "registry_writes"
_EXCLUSIVE = "alone"
_ADVISORY_LOCK = 0x636F6E74  # PostgreSQL: taken shared by every unit of work, exclusively by exclusive ones

# SQLite's primary result codes where a file is damaged, and those of reading a table or a column that is lost.
DAMAGE_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_NOTADB)
LOST_PART_CODES = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH)
# What reading rows of a damaged database may raise: a date, a number or JSON that is none.
UNREADABLE_ROWS = (ArithmeticError, AttributeError, LookupError, SQLAlchemyError, TypeError, ValueError)

log = logging.getLogger(__name__)


def create_engine_for(url: str) -> Engine:
    """Create an engine for `url`.

    SQLite: the folder is created; foreign keys, write-ahead logging and a busy timeout are enabled; a file in a
    read-only folder is opened for reading. PostgreSQL: broken connections are replaced, and a restarting server is
    waited for.

    Raises:
        InputError: SQLAlchemy cannot use `url`.
    """
    try:
        parsed = make_url(url)
        _create_folder(parsed)
        engine = create_engine(parsed, pool_pre_ping=True, **_read_only_options(parsed))
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, ValueError, TypeError) as error:
        problem = redact(f"the registry's URL {url} cannot be used: {error}", url)
        advice = "Give sqlite:///FILE, or postgresql://… with the extra `postgres` installed."
        raise InputError(f"{problem}. {advice}") from None  # the cause may quote the URL
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        event.listen(engine, "do_connect", _RetryingConnect())
        event.listen(engine, "connect", _prepare_postgresql)
        event.listen(engine, "begin", _begin_postgresql)
    return engine


def is_in_memory(engine: Engine) -> bool:
    """Return True if the database ends with this process."""
    return engine.dialect.name == "sqlite" and engine.url.database in (None, "", ":memory:")


def sqlite_url(file: Path) -> str:
    """Return the URL of a SQLite file; special characters of its path are escaped.

    >>> sqlite_url(Path("/srv/what?/registry.db"))
    'sqlite:////srv/what%3F/registry.db'
    """
    return URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)


def sqlite_file(url: str) -> Path | None:
    """Return the file of a SQLite URL; None for any other URL, and for a database in memory.

    >>> sqlite_file("sqlite:////srv/what%3F/registry.db")
    PosixPath('/srv/what?/registry.db')
    """
    try:
        parsed = make_url(url)
        is_sqlite = parsed.get_backend_name() == "sqlite"
    except (ArgumentError, ValueError, TypeError):
        return None  # `create_engine_for` says why
    if not is_sqlite or parsed.database in (None, "", ":memory:") or "uri" in parsed.query:
        return None
    return Path(str(parsed.database))


def is_missing_file(url: str) -> bool:
    """Return whether `url` is of a SQLite file that is missing or of no bytes; opening it would create it."""
    file = sqlite_file(url)
    return file is not None and (not file.exists() or (file.is_file() and file.stat().st_size == 0))


@contextmanager
def translate_connect_errors(url: str) -> Iterator[None]:
    """Raise DatabaseUnavailable if the database at `url` fails in the block."""
    try:
        yield
    except DBAPIError as error:
        if is_damage(error):
            raise damaged_error(url, error.orig) from None  # the cause may quote the URL
        why = redact(f"the registry at {url} cannot be opened: {str(error.orig).strip()}", url)
        advice = "Start the database, or give another --home or CONTINUAL_REGISTRY_URL."
        raise DatabaseUnavailable(f"{why}. Nothing was written. {advice}") from None  # the cause may quote the URL
    except UnicodeDecodeError as error:  # in place of an error whose message quotes a damaged schema
        raise damaged_error(url, error) from None


def is_damage(error: DBAPIError) -> bool:
    """Return whether SQLite failed to read because its file is damaged."""
    if not isinstance(error.orig, sqlite3.DatabaseError):
        return False
    code = getattr(error.orig, "sqlite_errorcode", None)  # none where a text is not UTF-8
    if code is None:
        return isinstance(error.orig, sqlite3.OperationalError)
    return code & 0xFF in (*DAMAGE_CODES, *LOST_PART_CODES)


def damaged_error(url: str, reason: object) -> DatabaseDamaged:
    """Return the error for a database at `url` whose file is damaged, or whose rows cannot be read."""
    what = redact(f"the registry at {sqlite_file(url) or url} is damaged: {str(reason).strip()}", url)
    advice = "`continual verify` lists the damage; restore the file from a copy, or a dump (`continual db restore`)."
    return DatabaseDamaged(f"{what}. {advice}")


def snapshot_engine(engine: Engine) -> Engine:
    """Return the same engine for transactions that see one snapshot of all tables."""
    if engine.dialect.name == "postgresql":  # by default each statement sees its own snapshot
        return engine.execution_options(isolation_level="REPEATABLE READ")
    return engine


def write_engine(engine: Engine, *, exclusive: bool = False) -> Engine:
    """Return the same engine for transactions that write; `exclusive` ones wait until no other is open."""
    return engine.execution_options(**{_WRITES: _EXCLUSIVE if exclusive else True})


@contextmanager
def migration_transaction(engine: Engine) -> Iterator[Connection]:
    """Open an exclusive transaction that may alter tables.

    SQLite alters a table by copying it, and would treat dropping the old copy as deleting rows that others reference:
    its foreign keys are disabled meanwhile, and checked before the commit.

    Raises:
        RegistryError: The transaction leaves broken references.
    """
    with write_engine(engine, exclusive=True).connect() as connection:
        sqlite = engine.dialect.name == "sqlite"
        cursor = connection.connection.cursor()  # the pragma has no effect inside a transaction
        if sqlite:
            cursor.execute("PRAGMA foreign_keys = OFF")
        try:
            with connection.begin():
                yield connection
                if sqlite and (broken := connection.exec_driver_sql("PRAGMA foreign_key_check").all()):
                    raise RegistryError(f"rows refer to others that are not there: {broken[:5]}. Nothing was changed.")
        finally:
            if sqlite:
                cursor.execute("PRAGMA foreign_keys = ON")
            cursor.close()


def lock_name(session: Session, name: str) -> None:
    """Wait until no other transaction adds a row of this name; look it up again afterwards."""
    if session.get_bind().dialect.name == "postgresql":  # SQLite has one writer at a time
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))


def reset_sequences(connection: Connection, tables: Iterable[Table]) -> None:
    """Set the id sequences behind the largest id after rows were inserted with explicit ids (PostgreSQL)."""
    if connection.dialect.name == "postgresql":
        for table in tables:
            sequence = func.pg_get_serial_sequence(table.name, "id")
            connection.execute(select(func.setval(sequence, func.max(table.c.id))).select_from(table))


def _create_folder(url: URL) -> None:
    if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
        folder = Path(url.database).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"the registry's folder {folder} cannot be made: {error}. Give another --home.") from error


class _RetryingConnect:
    """Connect with retries, but only once a first connection succeeded: a wrong URL must fail at once."""

    def __init__(self) -> None:
        self._answered = False

    def __call__(self, dialect: Dialect, _record: object, arguments: list[Any], options: dict[str, Any]) -> Any:
        end = time.monotonic() + RECONNECT_TIMEOUT
        while True:
            try:
                connection = dialect.connect(*arguments, **options)
            except dialect.loaded_dbapi.OperationalError:
                if not self._answered or time.monotonic() > end:
                    raise
                log.warning("the registry's database does not answer; it is waited for")
            else:
                self._answered = True
                return connection
            time.sleep(RETRY_SECONDS)


def _read_only_options(url: URL) -> dict[str, Any]:
    """Return options to open a SQLite file in a folder where its log and locks cannot be created."""
    file = Path(url.database or "").absolute()
    if url.get_backend_name() != "sqlite" or not file.is_file() or os.access(file.parent, os.W_OK):
        return {}
    # A write-ahead log exists while somebody writes, and must be read; without one the file cannot change.
    mode = "mode=ro" if Path(f"{file}-wal").exists() else "immutable=1"
    return {"creator": lambda: sqlite3.connect(f"{file.as_uri()}?{mode}", uri=True, check_same_thread=False)}


def _prepare_postgresql(connection: Any, _record: object) -> None:
    # Generic plans, for any limit and cursor of a page, read a tenth of the table: 90 ms instead of 7.
    with connection.cursor() as cursor:
        cursor.execute("SET plan_cache_mode = force_custom_plan")
    connection.commit()


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins transactions late, and none for DDL: see `_begin_sqlite`
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    _enable_wal(cursor)
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _enable_wal(cursor: sqlite3.Cursor) -> None:
    # Changing the journal mode ignores `busy_timeout`, so processes that open a new file together retry.
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    # Transactions that read and then write would deadlock on each other's read locks, so writers lock at the start.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    # Units run concurrently; one that deletes blobs must not overlap another between its check and its reference.
    if writes := connection.get_execution_options().get(_WRITES, False):
        shared = "" if writes == _EXCLUSIVE else "_shared"
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock{shared}({_ADVISORY_LOCK})")
