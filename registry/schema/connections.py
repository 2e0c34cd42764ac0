"""Connections: one function that knows which database it talks to, so that nothing else has to."""

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
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.orm import Session

from registry.errors import DatabaseUnavailable, RegistryError
from registry.redaction import redact
from tasks.errors import InputError

BUSY_SECONDS = 30
RECONNECT_TIMEOUT = (
    100.0  # seconds that a database which was there may be away: a restart costs nobody the lease on a task
)
RETRY_SECONDS = 0.5
_WRITES = "registry_writes"
_ALONE = "alone"
_DOOR = 0x636F6E74  # PostgreSQL's advisory lock that every unit of work shares, unless it has to be alone

log = logging.getLogger(__name__)


def create_engine_for(url: str) -> Engine:
    """An engine for `url`; for SQLite the folder is made, and foreign keys, WAL and waiting are switched on.

    A connection that broke is noticed and replaced, a server that is being restarted is waited for. A SQLite file in a
    folder that may not be written to can be read.

    Raises: InputError, where `url` names no database that SQLAlchemy knows.
    """
    try:
        parsed = make_url(url)
        _make_folder(parsed)
        engine = create_engine(parsed, pool_pre_ping=True, **_looking_only(parsed))
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, ValueError, TypeError) as error:
        wrong = redact(f"the registry's URL {url} cannot be used: {error}", url)
        advice = "Give sqlite:///FILE, or postgresql://… with the extra `postgres` installed."
        raise InputError(f"{wrong}. {advice}") from None  # its cause may quote the URL
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        event.listen(engine, "do_connect", _Patient())
        event.listen(engine, "connect", _prepare_postgresql)
        event.listen(engine, "begin", _begin_postgresql)
    return engine


def is_in_memory(engine: Engine) -> bool:
    """Whether the database ends with this process."""
    return engine.dialect.name == "sqlite" and engine.url.database in (None, "", ":memory:")


@contextmanager
def translate_connect_errors(url: str) -> Iterator[None]:
    """Raises DatabaseUnavailable where the database at `url` does not answer the first questions, or is none."""
    try:
        yield
    except DBAPIError as error:
        why = redact(f"the registry at {url} cannot be opened: {str(error.orig).strip()}", url)
        advice = "Start the database, or give another --home or CONTINUAL_REGISTRY_URL."
        raise DatabaseUnavailable(f"{why}. Nothing was written. {advice}") from None  # its cause may quote the URL


def snapshot_engine(engine: Engine) -> Engine:
    """The same engine and pool, for transactions that see one state of all tables, whoever writes meanwhile."""
    if engine.dialect.name == "postgresql":  # where each statement would see its own
        return engine.execution_options(isolation_level="REPEATABLE READ")
    return engine


def write_engine(engine: Engine, *, alone: bool = False) -> Engine:
    """The same engine and pool, for transactions that write; `alone`: each waits until no other is open."""
    return engine.execution_options(**{_WRITES: _ALONE if alone else True})


@contextmanager
def migration_transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction that may alter tables; a second one waits for its end.

    SQLite alters one by copying it, and would take the old one's end for that of the rows which others refer to: its
    references are not enforced meanwhile, and checked before the transaction ends.
    """
    with write_engine(engine, alone=True).connect() as connection:
        sqlite = engine.dialect.name == "sqlite"
        plain = connection.connection.cursor()  # a transaction cannot change this, so it is said before one begins
        if sqlite:
            plain.execute("PRAGMA foreign_keys = OFF")
        try:
            with connection.begin():
                yield connection
                if sqlite and (lost := connection.exec_driver_sql("PRAGMA foreign_key_check").all()):
                    raise RegistryError(f"rows refer to others that are not there: {lost[:5]}. Nothing was changed.")
        finally:
            if sqlite:
                plain.execute("PRAGMA foreign_keys = ON")
            plain.close()


def lock_name(session: Session, name: str) -> None:
    """Waits until nobody else is adding what has this name; to be asked again, it may be there now."""
    if session.get_bind().dialect.name == "postgresql":  # elsewhere nobody else writes
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))


def reset_sequences(connection: Connection, tables: Iterable[Table]) -> None:
    """Lets identities go on after those of rows that were written with their own; SQLite looks for itself."""
    if connection.dialect.name == "postgresql":
        for table in tables:
            sequence = func.pg_get_serial_sequence(table.name, "id")
            connection.execute(select(func.setval(sequence, func.max(table.c.id))).select_from(table))


def _make_folder(url: URL) -> None:
    if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
        folder = Path(url.database).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"the registry's folder {folder} cannot be made: {error}. Give another --home.") from error


class _Patient:
    """Connects, again and again where the database has answered before: a wrong URL is to be said at once."""

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


def _looking_only(url: URL) -> dict[str, Any]:
    """How to open a SQLite file beside which nothing may be written: its log and locks would be."""
    file = Path(url.database or "").absolute()
    if url.get_backend_name() != "sqlite" or not file.is_file() or os.access(file.parent, os.W_OK):
        return {}
    # Somebody else's log is there while they write, and has to be read; without one the file cannot change either.
    how = "mode=ro" if Path(f"{file}-wal").exists() else "immutable=1"
    return {"creator": lambda: sqlite3.connect(f"{file.as_uri()}?{how}", uri=True, check_same_thread=False)}


def _prepare_postgresql(connection: Any, _record: object) -> None:
    # A plan made for any value of a page's size and beginning reads a tenth of the table to be safe: 90 ms for 7.
    with connection.cursor() as cursor:
        cursor.execute("SET plan_cache_mode = force_custom_plan")
    connection.commit()


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins late and not for DDL: `_begin_sqlite` does it instead
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    _write_ahead(cursor)
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    # Only statements wait for `busy_timeout`. Changing the journal does not: several that open a new file ask again.
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
    # Two transactions that read and then write would each wait for the other's read lock: writers queue at the door.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    # Units write beside each other there; one that deletes blobs must not have any of them between looking and naming.
    if writes := connection.get_execution_options().get(_WRITES, False):
        shared = "" if writes == _ALONE else "_shared"
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock{shared}({_DOOR})")
