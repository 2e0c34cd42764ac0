"""The registry: opened by two URLs, read by its methods, written in units of work."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self, TypeVar, final

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from registry.blobs import BlobStore
from registry.errors import BlobError, Disconnected, Interrupted, NotFound, RegistryError, RegistryMissing
from registry.names import escape_for_storage
from registry.ownership import claim_store, require_own_store
from registry.reads import analytics, api_keys, lineage, listings
from registry.records import DataRecord, TaskRecord
from registry.redaction import quote, redact
from registry.schema.connections import (
    UNREADABLE_ROWS,
    create_engine_for,
    damaged_error,
    is_in_memory,
    is_missing_file,
    translate_connect_errors,
)
from registry.schema.revisions import database_revision, require_latest_revision
from registry.sessions import read_session, write_session
from registry.unit_of_work import UnitOfWork
from registry.unreferenced import delete_unreferenced
from registry.writes import arrivals, streams
from registry.writes.known_tasks import matching_tasks
from registry.writes.stream_changes import NO_DATA
from tasks.errors import InputError

if TYPE_CHECKING:
    from tasks.spec import Stream, TaskSpec

MAX_ATTEMPTS = 3  # of a transaction that meets conflicts

log = logging.getLogger(__name__)

P = ParamSpec("P")
Result = TypeVar("Result")


def as_registry_method(
    query: Callable[Concatenate[Session, P], Result],
) -> "Callable[Concatenate[Registry, P], Result]":
    """Turn a query that takes a session into a method of `Registry`, which opens the session and retries.

    A name that no database could store is not looked up: it is not found, in the same words on every database.
    """

    @wraps(query)
    def method(registry: "Registry", /, *args: P.args, **kwargs: P.kwargs) -> Result:
        for name in (*args, *kwargs.values()):
            if isinstance(name, str) and escape_for_storage(name) != name:
                raise NotFound(
                    f"nothing is called {quote(name)}: names hold neither NUL nor half a surrogate pair. "
                    "Use a registered name, such as one of `continual tasks`."
                )

        def read() -> Result:
            with registry.read_session() as session:
                try:
                    return query(session, *args, **kwargs)
                except DBAPIError:
                    raise  # translated by the session
                except UNREADABLE_ROWS as error:
                    raise damaged_error(registry.url, f"{type(error).__name__}: {error}") from error

        for _ in range(MAX_ATTEMPTS - 1):
            with suppress(Disconnected):
                return read()
        return read()

    return method


@final
class Registry:
    """The store of everything learned: a SQL database and a blob store.

    Every read opens a short session; every write is part of a unit of work. The query methods are the functions of
    `registry.reads` (`listings`, `lineage`, `analytics`, `api_keys`) and `registry.writes.arrivals`, bound below.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as home, Registry.open(f"sqlite:///{home}/registry.db", f"{home}/blobs") as registry:
    ...     registry.deltas()
    []
    """

    def __init__(self, engine: Engine, blobs: BlobStore) -> None:
        self.engine = engine
        self.blobs = blobs
        self._owns_store = False

    @classmethod
    def open(cls, url: str, blobs: str) -> Self:
        """Open the registry; an empty database gets the schema.

        Args:
            url: SQLAlchemy URL of the database.
            blobs: A folder, or an fsspec URL.

        Raises:
            SchemaError: The schema is older or newer than this code's.
            InputError: A URL is of an unknown kind.
            DatabaseUnavailable: The database does not answer.
        """
        store, engine = resolve_stores(url, blobs)
        try:
            with translate_connect_errors(url):
                if revision := database_revision(engine):
                    require_latest_revision(revision)
                else:
                    from registry.schema.migrate import migrate_to_newest  # Alembic starts slowly

                    migrate_to_newest(engine)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine, store)

    @classmethod
    def open_existing(cls, url: str, blobs: str) -> Self | None:
        """Open the registry, creating nothing; None where there is neither a registry nor a blob.

        Args:
            url: As for `open`.
            blobs: As for `open`.

        Raises:
            RegistryMissing: There is no registry, though the blob store holds blobs.
            SchemaError: The schema is older or newer than this code's.
            InputError: A URL is of an unknown kind.
            DatabaseUnavailable: The database does not answer.
        """
        if holds_registry(url):
            return cls.open(url, blobs)
        store = BlobStore(blobs)
        if not store.holds_blobs():
            return None
        if holds_registry(url):  # another process created it, and stored its first blob, since the first look
            return cls.open(url, blobs)
        raise RegistryMissing(
            f"there is no registry at {redact(url)}, or an empty one, though the blobs of one are at "
            f"{redact(store.url)}: it was lost, moved or emptied. Nothing was created. Restore the database from a copy"
            " (`continual db restore`, into another --home), give the place where it is (CONTINUAL_REGISTRY_URL), or "
            "begin anew with another --home."
        )

    @classmethod
    def empty(cls, blobs: str) -> Self:
        """Return a registry in memory, without rows, with the blob store at `blobs`."""
        return cls.open("sqlite://", blobs)

    @property
    def url(self) -> str:
        """The database's URL, password included."""
        return self.engine.url.render_as_string(hide_password=False)

    def urls(self) -> tuple[str, str]:
        """Return both URLs needed to open this registry in another process, passwords included.

        Raises:
            InputError: The registry is in the memory of this process.
        """
        if is_in_memory(self.engine) or "memory" in self.blobs.protocols:
            description = f"the registry at {redact(str(self.engine.url))} with blobs at {redact(self.blobs.url)}"
            advice = "Give a file or postgresql://…, and a folder or a store."
            raise InputError(f"{description} is in the memory of this process, where no other can reach it. {advice}")
        url = self.engine.url
        if url.get_backend_name() == "sqlite" and url.database:
            url = url.set(database=os.path.abspath(url.database))
        return url.render_as_string(hide_password=False), self.blobs.url

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def unit_of_work(self, *, exclusive: bool = False) -> Iterator[UnitOfWork]:
        """Open a transaction: committed at the end of the block, rolled back on any exception.

        Blobs are stored before their rows, and deleted after them: a blob without a row is harmless, a row without its
        blob is not.

        Args:
            exclusive: Wait until no other unit is open, and block new ones.

        Yields:
            The unit of work.

        Raises:
            RegistryError: The database rejects a write.
            StoreMismatch: The blob store belongs to another registry.
        """
        self.claim_store()
        with write_session(self.engine, exclusive=exclusive) as session:
            unit = UnitOfWork(session, self.blobs)
            yield unit
        try:
            delete_unreferenced(self.engine, self.blobs, unit.dropped_blobs)
        except RegistryError as error:  # the unit is committed all the same
            log.info("blobs are left to `continual gc`: %s", error)

    def require_own_store(self) -> None:
        """Check, writing nothing, that the blob store is not another registry's.

        Raises:
            StoreMismatch: It is.
        """
        with self.read_session() as session:
            require_own_store(session, self.blobs)

    def claim_store(self) -> None:
        """Mark the blob store as this registry's, unless it is marked; every unit of work does so first.

        Raises:
            StoreMismatch: The store belongs to another registry.
            RegistryMissing: It holds blobs and no mark, and no row of this registry names anything.
        """
        if not self._owns_store:
            with suppress(BlobError):  # where the store cannot be reached nothing is written; the next unit asks again
                claim_store(self.engine, self.blobs)
                self._owns_store = True

    def write_with_retry(self, work: Callable[[UnitOfWork], Result]) -> Result:
        """Run `work` in a unit of work and return its result, retrying after conflicts and lost connections.

        `work` is repeated as a whole, so it must not have side effects outside the unit.

        Raises:
            Interrupted: All attempts met conflicts.
            Disconnected: The connection broke during the commit, so that the outcome is unknown.
        """
        for attempts_left in reversed(range(MAX_ATTEMPTS)):
            flushed = False
            try:
                with self.unit_of_work() as unit:
                    result = work(unit)
                    unit.session.flush()
                    flushed = True
                return result
            except Interrupted as error:
                if not attempts_left or (flushed and isinstance(error, Disconnected)):
                    raise
                log.info("once more: %s", error)
        raise AssertionError("the last repeat returns or raises")

    @contextmanager
    def read_session(self) -> Iterator[Session]:
        """Open a session that sees one snapshot of the registry, for queries without a method."""
        with read_session(self.engine) as session:
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
    has_keys = as_registry_method(api_keys.has_keys)

    arrivals, arrivals_left = as_registry_method(arrivals.arrivals), as_registry_method(arrivals.has_pending)

    def submit(
        self, task: "TaskSpec | Stream", *, priority: int = 0, folder: Path | str = ".", once: bool = False
    ) -> int:
        """Add an arrival: a task to be learned by any watching process (`Learner.watch`).

        Args:
            task: A spec, or the stream of one task that `read_task` returns.
            priority: Higher priorities are learned first.
            folder: Base of a spec's relative data files.
            once: Do nothing if the same content was submitted before.

        Returns:
            The arrival's number; with `once`, the number of the earlier one.

        Raises:
            InputError: `task` is a stream of several tasks, or its rows are in memory.
        """
        from tasks.spec import Stream  # with Pydantic, which listings do without

        stream = task if isinstance(task, Stream) else Stream(name=task.name, tasks=(task,), folder=Path(folder))
        return self.write_with_retry(lambda unit: arrivals.submit(unit.session, stream, priority=priority, once=once))

    def cancel_arrival(self, number: int) -> None:
        """Cancel an arrival; a process that is learning it stops soon and registers nothing.

        Raises:
            NotFound: There is no such arrival.
            NothingToDo: It is learned or cancelled already.
        """
        self.write_with_retry(lambda unit: unit.drop_blobs(arrivals.cancel(unit.session, number)))

    def retry_arrival(self, number: int) -> None:
        """Queue a failed or cancelled arrival again, in its old place.

        Raises:
            NotFound: There is no such arrival, or its task was purged.
            NothingToDo: It is learned, waiting or being learned.
        """
        self.write_with_retry(lambda unit: arrivals.retry(unit.session, number))

    def check_tasks_unchanged(self, records: Iterable[TaskRecord]) -> None:
        """Check that tasks of the same names are not registered with another kind, metric or removed labels.

        Raises:
            TaskChanged: A registered task differs.
        """
        with self.read_session() as session:
            matching_tasks(session, records)

    def check_stream_unchanged(
        self,
        stream: str,
        entries: Sequence[tuple[str, str]],
        data: Mapping[str, DataRecord] = NO_DATA,
    ) -> None:
        """Check that a registered stream of this name starts with the same (task, recipe) entries.

        Args:
            stream: The stream's name.
            entries: Pairs (task name, recipe digest), in order.
            data: By task, where its rows come from, so that the error can say what differs.

        Raises:
            StreamChanged: An entry differs.
        """
        with self.read_session() as session:
            if row := streams.find_stream(session, stream):
                streams.check_unchanged(row, entries, data)


def holds_registry(url: str) -> bool:
    """Return whether the database at `url` has a registry's tables; nothing is created.

    Raises:
        InputError: `url` is of an unknown kind.
        DatabaseUnavailable: The database does not answer.
    """
    if is_missing_file(url):
        return False
    engine = create_engine_for(url)
    try:
        with translate_connect_errors(url):
            return database_revision(engine) is not None
    finally:
        engine.dispose()


def resolve_stores(url: str, blobs: str) -> tuple[BlobStore, Engine]:
    """Create the blob store and the database engine, without connecting.

    Raises:
        InputError: A URL is of an unknown kind, or the blobs are in memory and the database is not.
    """
    store = BlobStore(blobs)
    engine = create_engine_for(url)
    if "memory" in store.protocols and not is_in_memory(engine):
        raise InputError(
            f"blobs at {redact(blobs)} end with this process, and a registry that names them would not. "
            "Give a folder, or a registry in memory too (sqlite://)."
        )
    return store, engine
