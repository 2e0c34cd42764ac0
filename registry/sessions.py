"""Sessions that read one snapshot or write in one transaction, with the database's errors translated."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from registry.errors import Disconnected, Interrupted, RegistryError
from registry.redaction import quote
from registry.schema.connections import DAMAGE_CODES, damaged_error, is_damage, snapshot_engine, write_engine
from tasks.errors import InputError

# PostgreSQL: serialization failure, deadlock, lock timeout.
SERIALIZATION_SQLSTATES = ("40001", "40P01", "55P03")
BUSY_CODES = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)  # after the busy timeout


@contextmanager
def read_session(engine: Engine) -> Iterator[Session]:
    """Open a session that sees one snapshot of all tables."""
    with (
        _translate_errors("read the registry", engine, reading=True),
        Session(snapshot_engine(engine)) as session,
        session.begin(),
    ):
        yield session


@contextmanager
def write_session(engine: Engine, *, exclusive: bool = False) -> Iterator[Session]:
    """Open a session whose transaction is committed at the end of the block, and rolled back on any exception."""
    writing = write_engine(engine, exclusive=exclusive)
    with _translate_errors("write to the registry", engine), Session(writing) as session, session.begin():
        yield session


@contextmanager
def _translate_errors(action: str, engine: Engine, *, reading: bool = False) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        if code in DAMAGE_CODES or (reading and is_damage(error)):
            raise damaged_error(engine.url.render_as_string(hide_password=False), error.orig) from error
        raise _error_type(error)(
            f"could not {action}: {error.orig} (in: {error.statement}). Nothing was written."
        ) from error
    except UnicodeDecodeError as error:  # in place of an error whose message quotes a damaged schema
        raise damaged_error(engine.url.render_as_string(hide_password=False), error) from error
    except UnicodeEncodeError as error:
        raise InputError(
            f"{quote(str(error.object))} holds half a surrogate pair, which no database takes. Mend it."
        ) from error


def _error_type(error: DBAPIError) -> type[RegistryError]:
    """Map a database error to the error that its caller should handle."""
    if error.connection_invalidated:
        return Disconnected
    if isinstance(error, OperationalError) and error.statement is None:  # no connection was made
        return Interrupted
    conflict = isinstance(error, IntegrityError) or getattr(error.orig, "sqlstate", None) in SERIALIZATION_SQLSTATES
    busy = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in BUSY_CODES
    return Interrupted if conflict or busy else RegistryError
