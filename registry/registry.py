"""The registry: opened by two URLs, read by its methods, written in units of work."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self, final

from sqlalchemy import Engine, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from registry import queries, schema, streams
from registry.blobs import Blobs
from registry.engine import connect, in_memory, opening, reader, writer
from registry.errors import RegistryError
from registry.known import known_task
from registry.records import (
    BackboneRecord,
    Champion,
    Mode,
    StoredDelta,
    StoredPosition,
    StoredScore,
    StoredSignature,
    StoredStream,
    TaskRecord,
)
from registry.secrets import shown
from registry.shapes import Row
from registry.tables import Stream
from registry.unit import Unit
from tasks.errors import InputError


@final
class Registry:
    """What has been learned. Every read opens a short session of its own; every write is part of a `unit`.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as home, Registry.open(f"sqlite:///{home}/registry.db", f"{home}/blobs") as registry:
    ...     registry.deltas()
    []
    """

    def __init__(self, engine: Engine, blobs: Blobs) -> None:
        self.engine = engine
        self.blobs = blobs

    @classmethod
    def open(cls, url: str, blobs: str) -> Self:
        """The registry at the database `url` and the blobs' `blobs` (a folder, or a URL of fsspec).

        An empty database gets the schema. Raises: SchemaError, where its schema is older or newer than this code's;
        InputError for a URL of no known kind; DatabaseUnavailable, where the database does not answer.
        """
        store, engine = places(url, blobs)
        try:
            with opening(url):
                schema.check(engine)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine, store)

    def close(self) -> None:
        """Lets go of all connections."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def unit(self, *, alone: bool = False) -> Iterator[Unit]:
        """One transaction: committed where the block ends well, undone on any exception.

        Blobs are put beforehand: one that no row names does no harm, a row without its blob would.
        alone: waits until no other unit is open, and lets none begin.
        Raises: RegistryError, where the database refuses what is written.
        """
        engine = writer(self.engine, alone=alone)
        with _translated("write to the registry"), Session(engine) as session, session.begin():
            yield Unit(session, self.blobs)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one state of the registry; for queries that are not methods here."""
        with _translated("read the registry"), Session(reader(self.engine)) as session, session.begin():
            yield session

    def tasks(self) -> list[Row]:
        """Rows of `continual tasks`: task, kind, metric, labels (their number), rows, champion, score, created_at."""
        with self.reading() as session:
            return queries.tasks(session)

    def deltas(self, task: str | None = None) -> list[Row]:
        """Rows of `continual deltas`, of one task or of all. Raises: NotFound for the task."""
        with self.reading() as session:
            return queries.deltas(session, task=task)

    def lineage(self, delta: str) -> list[Row]:
        """Rows of `continual lineage`: delta, parent, kind, weight, score, depth. Raises: NotFound."""
        with self.reading() as session:
            return queries.lineage(session, delta=delta)

    def delta(self, name: str) -> StoredDelta:
        """The delta of that name, such as sst2@1. Raises: NotFound."""
        with self.reading() as session:
            return queries.delta(session, name=name)

    def task(self, name: str) -> TaskRecord:
        """The task of that name. Raises: NotFound."""
        with self.reading() as session:
            return queries.task(session, name=name)

    def backbone(self, fingerprint: str) -> BackboneRecord:
        """The backbone of this fingerprint. Raises: NotFound."""
        with self.reading() as session:
            return queries.backbone(session, fingerprint=fingerprint)

    def backbones(self) -> tuple[BackboneRecord, ...]:
        """All backbones, in the order in which they were registered."""
        with self.reading() as session:
            return queries.backbones(session)

    def champions(self, backbone: str) -> tuple[Champion, ...]:
        """The deltas that serve on the backbone of this fingerprint, in the order in which their tasks were learned."""
        with self.reading() as session:
            return queries.champions(session, backbone=backbone)

    def signatures(self, backbone: str) -> tuple[StoredSignature, ...]:
        """The signatures of the champions on the backbone of this fingerprint, in order of their tasks' arrival."""
        with self.reading() as session:
            return queries.signatures(session, backbone=backbone)

    def stream(self, name: str) -> StoredStream:
        """The stream of that name with its positions. Raises: NotFound."""
        with self.reading() as session:
            return queries.stream(session, name=name)

    def positions(self, stream: str) -> tuple[StoredPosition, ...]:
        """The positions of the stream of that name, in order; none where it was never begun."""
        with self.reading() as session:
            return queries.positions(session, stream=stream)

    def require_same(self, records: Iterable[TaskRecord]) -> None:
        """Raises TaskChanged where a task is known with another kind or metric, or with labels that are gone."""
        with self.reading() as session:
            for record in records:
                known_task(session, record)

    def require_begun_so(self, stream: str, entries: Sequence[tuple[str, str]]) -> None:
        """Raises StreamChanged where a stream of this name was begun with other (task, recipe) entries."""
        with self.reading() as session:
            if known := session.scalar(select(Stream).where(Stream.name == stream)):
                streams.require_begun_so(known, entries)

    def signature(self, delta: str) -> StoredSignature:
        """The signature of a delta, such as sst2@1. Raises: NotFound."""
        with self.reading() as session:
            return queries.signature(session, delta=delta)

    def last_version(self, task: str, backbone: str) -> StoredDelta | None:
        """The delta that serves a task on the backbone of this fingerprint, else its newest that is not purged."""
        with self.reading() as session:
            return queries.last_version(session, task=task, backbone=backbone)

    def streams(self) -> tuple[StoredStream, ...]:
        """All streams with their positions, in the order in which they were begun."""
        with self.reading() as session:
            return queries.streams(session)

    def scores(
        self,
        *,
        stream: str | None = None,
        delta: str | None = None,
        task: str | None = None,
        mode: Mode | None = None,
        split: str | None = None,
    ) -> tuple[StoredScore, ...]:
        """The scores that match all that is given, in order of step. Raises: NotFound for an unknown name."""
        with self.reading() as session:
            return queries.scores(session, stream=stream, delta=delta, task=task, mode=mode, split=split)

    def stream_of(self, delta: str) -> str | None:
        """The name of the stream in which a delta was learned; None where it was learned alone. Raises: NotFound."""
        with self.reading() as session:
            return queries.stream_of(session, delta=delta)

    def serving(self, task: str) -> tuple[StoredDelta, ...]:
        """The deltas that serve a task, one for each backbone, in order of learning. Raises: NotFound."""
        with self.reading() as session:
            return queries.serving(session, task=task)


def places(url: str, blobs: str) -> tuple[Blobs, Engine]:
    """The store of blobs and the database, not looked into yet.

    Raises: InputError for a URL of no known kind, and for a registry that would outlive its blobs.
    """
    store = Blobs(blobs)
    engine = connect(url)
    if "memory" in store.protocols and not in_memory(engine):
        raise InputError(
            f"blobs at {shown(blobs)} end with this process, and a registry that names them would not. "
            "Give a folder, or a registry in memory too (sqlite://)."
        )
    return store, engine


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise RegistryError(f"could not {doing}: {error.orig} (in: {error.statement}). Nothing was written.") from error
    except UnicodeEncodeError as error:
        raise InputError(f"{error.object!r} holds half a surrogate pair, which no database takes. Mend it.") from error
