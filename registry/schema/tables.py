"""The tables: what has been learned, on which backbone and from what; how well is in `measured`."""

from datetime import datetime
from typing import Any, get_args

from sqlalchemy import JSON, BigInteger, CheckConstraint, Index, Text, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column, relationship

from registry.names import delta_name
from registry.records import DeltaStatus, EventKind, LineageKind, OutboxTopic, PositionState, require_digest
from registry.schema.base import Base, check_in, foreign_key, now, partial_index

# What may be learned next. An arrival that failed has its place behind the others, as often as it is tried again.
CLAIMABLE = "(state = 'waiting' OR (state = 'failed' AND retries > 0))"


class Backbone(Base):
    """A frozen pretrained transformer."""

    __tablename__ = "backbones"

    fingerprint: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    family: Mapped[str]
    hidden_size: Mapped[int]
    parameters: Mapped[int] = mapped_column(BigInteger)
    pooling: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Task(Base):
    """Labelled rows of one kind with one metric; fingerprints and row counts by split.

    purged_at: since when a name is all that is kept of it.
    """

    __tablename__ = "tasks"

    name: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[str]
    metric: Mapped[str]
    labels: Mapped[list[str]] = mapped_column(JSON)
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    fingerprints: Mapped[dict[str, str]] = mapped_column(JSON)
    rows: Mapped[dict[str, int]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(default=now)
    purged_at: Mapped[datetime | None]


class Stream(Base):
    """Tasks in order of arrival on one backbone; the one without is open: what is submitted arrives there."""

    __tablename__ = "streams"

    name: Mapped[str] = mapped_column(unique=True)
    backbone_id: Mapped[int | None] = foreign_key("backbones")
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    digest: Mapped[str]
    mlflow_run: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=now)

    backbone: Mapped[Backbone | None] = relationship()
    positions: Mapped[list["Position"]] = relationship(order_by="Position.number", back_populates="stream")


class Position(Base):
    """One place in a stream, and who is learning it: `holder`, until `lease_until` by the database's clock.

    attempts: how often learning it was begun; of an arrival, since its last checkpoint and without what was given back.
    Of an arrival: submitted_at: when · spec: what, with the folder of its files · backbone: the name of the only one
    that it is for · retries: how often it is still tried again by itself.
    """

    __tablename__ = "positions"
    __table_args__ = (
        UniqueConstraint("stream_id", "number"),
        Index(None, "stream_id", "state", "number"),
        partial_index(
            "uq_positions_held", "state = 'held'", "stream_id", "task_name"
        ),  # a task is learned once at a time
        check_in("state", get_args(PositionState)),
        CheckConstraint("number >= 0", name="number"),
        CheckConstraint("(state = 'held') = (holder IS NOT NULL)", name="held_by_one"),
        CheckConstraint("(state = 'held') = (lease_until IS NOT NULL)", name="leased"),
        CheckConstraint("attempts >= 0", name="attempts"),
    )

    stream_id: Mapped[int] = foreign_key("streams", index=False)  # the unique index begins with it
    number: Mapped[int]
    task_id: Mapped[int | None] = foreign_key("tasks")
    task_name: Mapped[str] = mapped_column(index=True)
    recipe: Mapped[str]
    state: Mapped[PositionState] = mapped_column(Text, default="waiting")
    holder: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(default=0, server_default="0")
    delta_id: Mapped[int | None] = foreign_key("deltas")
    error: Mapped[str | None] = mapped_column(Text)
    priority: Mapped[int] = mapped_column(default=0, server_default="0")
    submitted_at: Mapped[datetime | None]
    spec: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    backbone: Mapped[str | None]
    retries: Mapped[int] = mapped_column(default=0, server_default="0")

    stream: Mapped[Stream] = relationship(back_populates="positions")
    delta: Mapped["Delta | None"] = relationship()


# In order of their turn: what waits before what failed, of the highest priority first, of equal ones the earlier.
_turn = (Position.stream_id, Position.backbone, Position.state.desc(), Position.priority.desc(), Position.number)
partial_index("ix_positions_free", CLAIMABLE, *_turn)


class Delta(Base):
    """The edits and head that one task owns, in one version.

    digest, predictions, replay: blobs of its values, of what it says of the test rows, and of fixed inputs ·
    data: a DataRecord, what it was learned from.
    """

    __tablename__ = "deltas"
    __table_args__ = (
        UniqueConstraint("task_id", "version"),
        check_in("status", get_args(DeltaStatus)),
        CheckConstraint("version >= 1", name="version"),
        CheckConstraint("(status = 'purged') = (digest IS NULL)", name="purged"),
        CheckConstraint("bytes >= 0 AND parameters >= 0 AND share >= 0", name="size"),
        Index(None, "backbone_id", "id"),
        partial_index("uq_deltas_champion", "status = 'champion'", "task_id", "backbone_id"),
    )

    task_id: Mapped[int] = foreign_key("tasks", index=False)  # the unique index begins with it
    backbone_id: Mapped[int] = foreign_key("backbones", index=False)  # an index above begins with it
    version: Mapped[int]
    method: Mapped[str]
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)
    budget: Mapped[dict[str, Any]] = mapped_column(JSON)
    digest: Mapped[str | None]
    bytes: Mapped[int] = mapped_column(BigInteger)
    parameters: Mapped[int] = mapped_column(BigInteger)
    share: Mapped[float]
    seed: Mapped[int] = mapped_column(BigInteger)
    labels: Mapped[list[str]] = mapped_column(JSON)
    versions: Mapped[dict[str, str]] = mapped_column(JSON)
    status: Mapped[DeltaStatus] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)
    warm_start: Mapped[str]
    seconds: Mapped[float]
    examples_per_second: Mapped[float | None]
    predictions: Mapped[str | None]
    replay: Mapped[str | None]
    tried: Mapped[list[dict[str, Any]]] = mapped_column(JSON, server_default="[]")
    data: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    mlflow_run: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=now)

    task: Mapped[Task] = relationship(lazy="joined", innerjoin=True)
    backbone: Mapped[Backbone] = relationship(lazy="joined", innerjoin=True)

    @property
    def name(self) -> str:
        """The public name, such as sst2@1."""
        return delta_name(self.task.name, self.version)

    @property
    def values(self) -> str:
        """The digest of its values. Raises: NotFound, where they were purged."""
        return require_digest(self.digest, self.name)


class Split(Base):
    """Rows that a delta was learned from or scored on: a split of its task as it was then, by their fingerprint."""

    __tablename__ = "splits"
    __table_args__ = (
        UniqueConstraint("delta_id", "split"),
        Index(None, "fingerprint", "delta_id"),
        CheckConstraint("rows >= 0", name="rows"),
    )

    delta_id: Mapped[int] = foreign_key("deltas", index=False)  # the unique index begins with it
    split: Mapped[str]
    fingerprint: Mapped[str]
    rows: Mapped[int]


class Lineage(Base):
    """One delta came from another. Parents are registered first, so the check makes cycles impossible."""

    __tablename__ = "lineage"
    __table_args__ = (
        UniqueConstraint("child_id", "parent_id", "kind"),
        CheckConstraint("parent_id < child_id", name="parent_first"),
        check_in("kind", get_args(LineageKind)),
        Index(None, "parent_id", "id"),
    )

    child_id: Mapped[int] = foreign_key("deltas", index=False)  # the unique index begins with it
    parent_id: Mapped[int] = foreign_key("deltas", index=False)  # an index above begins with it
    kind: Mapped[LineageKind] = mapped_column(Text)
    weight: Mapped[float]
    score: Mapped[float | None]
    gain: Mapped[float | None]


class Signature(Base):
    """Sums over a task's rows in frozen features, as a version of its delta has them; routing: what routers need."""

    __tablename__ = "signatures"
    __table_args__ = (CheckConstraint("rows >= 0", name="rows"),)

    delta_id: Mapped[int] = foreign_key("deltas", index=False, unique=True)
    digest: Mapped[str]
    rows: Mapped[int]
    layer: Mapped[int] = mapped_column(default=-1)
    pooling: Mapped[str]
    routing: Mapped[str | None]


class Checkpoint(Base):
    """How far the learning of a position has come: after `epoch`, a blob to go on from."""

    __tablename__ = "checkpoints"
    __table_args__ = (CheckConstraint("epoch >= 0", name="epoch"),)

    position_id: Mapped[int] = foreign_key("positions", index=False, unique=True)
    epoch: Mapped[int]
    digest: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Event(Base):
    """What happened to a task's delta, and why: the history of who served."""

    __tablename__ = "events"
    __table_args__ = (
        check_in("what", get_args(EventKind)),
        Index(None, "created_at", "id"),
        Index(None, "task_id", "created_at", "id"),
    )

    task_id: Mapped[int] = foreign_key("tasks", index=False)  # an index above begins with it
    delta_id: Mapped[int | None] = foreign_key("deltas")
    what: Mapped[EventKind] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=now)


class OutboxRow(Base):
    """What MLflow has not been told yet; written with what it tells of, deleted once MLflow has it.

    subject: the name of a delta, a stream or a task · about: what the sender cannot ask the registry any more ·
    holder: who is sending it, until `due_at`; without one, `due_at` is when it may be sent next.
    """

    __tablename__ = "outbox"
    __table_args__ = (check_in("message", get_args(OutboxTopic)), CheckConstraint("attempts >= 0", name="attempts"))

    message: Mapped[OutboxTopic] = mapped_column(Text)
    subject: Mapped[str] = mapped_column(index=True)
    about: Mapped[dict[str, Any]] = mapped_column(JSON, server_default="{}")
    attempts: Mapped[int] = mapped_column(default=0, server_default="0")
    due_at: Mapped[datetime] = mapped_column(default=func.current_timestamp(), index=True)
    holder: Mapped[str | None]
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=now)
