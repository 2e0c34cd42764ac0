"""The registry: opened by two URLs, read by its methods, written in units of work."""

import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar, final

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from registry.blobs import BlobStore
from registry.errors import Disconnected, Interrupted, RegistryError
from registry.reads import analytics, api_keys, lineage, listings
from registry.records import TaskRecord
from registry.redaction import redact
from registry.schema import migrate
from registry.schema.connections import (
    create_engine_for,
    is_in_memory,
    snapshot_engine,
    translate_connect_errors,
    write_engine,
)
from registry.unit_of_work import UnitOfWork
from registry.writes import arrivals, streams
from registry.writes.known_tasks import matching_tasks
from tasks.errors import InputError
from tasks.spec import Stream, TaskSpec

MAX_ATTEMPTS = 3  # how often a transaction is begun that does not come through
# PostgreSQL could not put two transactions in an order, or one behind the other, or would not wait longer for one.
SERIALIZATION_SQLSTATES = ("40001", "40P01", "55P03")
BUSY_CODES = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)  # for longer than is waited for them

log = logging.getLogger(__name__)

P = ParamSpec("P")
Answer = TypeVar("Answer")


def as_registry_method(
    question: Callable[Concatenate[Session, P], Answer],
) -> "Callable[Concatenate[Registry, P], Answer]":
    """A question to a session as a method of the registry, which opens a session for it."""

    @wraps(question)
    def method(registry: "Registry", /, *given: P.args, **more: P.kwargs) -> Answer:
        for _ in range(MAX_ATTEMPTS - 1):
            with suppress(Disconnected), registry.read_session() as session:
                return question(session, *given, **more)
        with registry.read_session() as session:
            return question(session, *given, **more)

    return method


@final
class Registry:
    """What has been learned. Every read opens a short session of its own; every write is part of a `unit`.

    What can be asked is written in `queries`, `ancestry`, `questions` and `access`, and listed below as methods.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as home, Registry.open(f"sqlite:///{home}/registry.db", f"{home}/blobs") as registry:
    ...     registry.deltas()
    []
    """

    def __init__(self, engine: Engine, blobs: BlobStore) -> None:
        self.engine = engine
        self.blobs = blobs

    @classmethod
    def open(cls, url: str, blobs: str) -> Self:
        """The registry at the database `url` and the blobs' `blobs` (a folder, or a URL of fsspec).

        An empty database gets the schema. Raises: SchemaError, where its schema is older or newer than this code's;
        InputError for a URL of no known kind; DatabaseUnavailable, where the database does not answer.
        """
        store, engine = resolve_stores(url, blobs)
        try:
            with translate_connect_errors(url):
                migrate.ensure_schema(engine)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine, store)

    def urls(self) -> tuple[str, str]:
        """What `open` needs to open it elsewhere, passwords included.

        Raises: InputError for a registry that is in the memory of this process.
        """
        if is_in_memory(self.engine) or "memory" in self.blobs.protocols:
            where = f"the registry at {redact(str(self.engine.url))} with blobs at {redact(self.blobs.url)}"
            advice = "Give a file or postgresql://…, and a folder or a store."
            raise InputError(f"{where} is in the memory of this process, where no other can reach it. {advice}")
        url = self.engine.url
        if url.get_backend_name() == "sqlite" and url.database:
            url = url.set(database=os.path.abspath(url.database))
        return url.render_as_string(hide_password=False), self.blobs.url

    def close(self) -> None:
        """Lets go of all connections."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def unit_of_work(self, *, alone: bool = False) -> Iterator[UnitOfWork]:
        """One transaction: committed where the block ends well, undone on any exception.

        Blobs are put beforehand: one that no row names does no harm, a row without its blob would.
        alone: waits until no other unit is open, and lets none begin.
        Raises: RegistryError, where the database refuses what is written.
        """
        engine = write_engine(self.engine, alone=alone)
        with _translated("write to the registry"), Session(engine) as session, session.begin():
            yield UnitOfWork(session, self.blobs)

    def write_with_retry(self, work: Callable[[UnitOfWork], Answer]) -> Answer:
        """What `work` returns in a unit of its own; all of it again where another one, just committed, came first, and
        where the connection broke before it was done.

        Raises: Disconnected, where it broke while the unit was committed: then nobody knows whether it was.
        """
        for left in reversed(range(MAX_ATTEMPTS)):
            done = False
            try:
                with self.unit_of_work() as unit:
                    result = work(unit)
                    unit.session.flush()
                    done = True
                return result
            except Interrupted as error:
                if not left or (done and isinstance(error, Disconnected)):
                    raise
                log.info("once more: %s", error)
        raise AssertionError("the last repeat returns or raises")

    @contextmanager
    def read_session(self) -> Iterator[Session]:
        """A session that sees one state of the registry; for queries that are not methods here."""
        with _translated("read the registry"), Session(snapshot_engine(self.engine)) as session, session.begin():
            yield session

    tasks, task = as_registry_method(listings.tasks), as_registry_method(listings.task)
    deltas, delta = as_registry_method(listings.deltas), as_registry_method(listings.delta)
    backbones, backbone = as_registry_method(listings.backbones), as_registry_method(listings.backbone)
    champions, serving = as_registry_method(listings.champions), as_registry_method(listings.task_champions)
    signatures, signature = as_registry_method(listings.signatures), as_registry_method(listings.signature)
    last_version = as_registry_method(listings.last_version)
    streams, stream, positions = (
        as_registry_method(listings.streams),
        as_registry_method(listings.stream),
        as_registry_method(listings.positions),
    )
    stream_of, last_stream = as_registry_method(listings.stream_of), as_registry_method(listings.last_stream)
    learned = as_registry_method(listings.stream_deltas)
    scores, confusions = as_registry_method(listings.scores), as_registry_method(listings.confusions)
    strategies = as_registry_method(listings.strategies)

    parents, siblings = as_registry_method(lineage.stream_parents), as_registry_method(lineage.siblings)
    dependents, lineage = as_registry_method(lineage.dependents), as_registry_method(lineage.lineage)

    best, history = as_registry_method(analytics.best_deltas), as_registry_method(analytics.score_history)
    changes, cost = as_registry_method(analytics.change_log), as_registry_method(analytics.stream_costs)

    keys, active_keys = as_registry_method(api_keys.list_keys), as_registry_method(api_keys.active_keys)

    arrivals, arrivals_left = as_registry_method(arrivals.arrivals), as_registry_method(arrivals.has_pending)

    def submit(
        self, task: TaskSpec | Stream, *, priority: int = 0, folder: Path | str = ".", once: bool = False
    ) -> int:
        """Adds a task to what is to be learned by whoever watches (`Learner.watch`), and returns its number.

        `task` is a spec, whose relative data files start from `folder`, or what `read_task` gives. Those of a higher
        priority are learned before others. once: unless the same was submitted before; then the number is that one's.
        Raises: InputError for a stream of several tasks.
        """
        alone = task if isinstance(task, Stream) else Stream(name=task.name, tasks=(task,), folder=Path(folder))
        return self.write_with_retry(lambda unit: arrivals.submit(unit.session, alone, priority=priority, once=once))

    def cancel_arrival(self, number: int) -> None:
        """Sees to it that an arrival is not learned; who is learning it stops soon, and registers nothing of it.

        Raises: NotFound; NothingToDo, where it is learned or cancelled already.
        """
        self.write_with_retry(lambda unit: arrivals.cancel(unit.session, number))

    def retry_arrival(self, number: int) -> None:
        """Lets an arrival that failed or was cancelled wait again, in its old place.

        Raises: NotFound, also where its task was purged; NothingToDo, where it is not over, or learned.
        """
        self.write_with_retry(lambda unit: arrivals.retry(unit.session, number))

    def check_tasks_unchanged(self, records: Iterable[TaskRecord]) -> None:
        """Raises TaskChanged where a task is known with another kind or metric, or with labels that are gone."""
        with self.read_session() as session:
            matching_tasks(session, records)

    def check_stream_unchanged(self, stream: str, entries: Sequence[tuple[str, str]]) -> None:
        """Raises StreamChanged where a stream of this name was begun with other (task, recipe) entries."""
        with self.read_session() as session:
            if known := streams.find_stream(session, stream):
                streams.check_unchanged(known, entries)


def resolve_stores(url: str, blobs: str) -> tuple[BlobStore, Engine]:
    """The store of blobs and the database, not looked into yet.

    Raises: InputError for a URL of no known kind, and for a registry that would outlive its blobs.
    """
    store = BlobStore(blobs)
    engine = create_engine_for(url)
    if "memory" in store.protocols and not is_in_memory(engine):
        raise InputError(
            f"blobs at {redact(blobs)} end with this process, and a registry that names them would not. "
            "Give a folder, or a registry in memory too (sqlite://)."
        )
    return store, engine


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise _kind(error)(f"could not {doing}: {error.orig} (in: {error.statement}). Nothing was written.") from error
    except UnicodeEncodeError as error:
        raise InputError(f"{error.object!r} holds half a surrogate pair, which no database takes. Mend it.") from error


def _kind(error: DBAPIError) -> type[RegistryError]:
    """What an error of the database means for who was writing."""
    if error.connection_invalidated:
        return Disconnected
    if isinstance(error, OperationalError) and error.statement is None:  # no connection was made
        return Interrupted
    first = isinstance(error, IntegrityError) or getattr(error.orig, "sqlstate", None) in SERIALIZATION_SQLSTATES
    busy = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in BUSY_CODES
    return Interrupted if first or busy else RegistryError
