"""The main tables: backbones, tasks, streams, deltas, lineage; scores are in `score_tables`."""

from datetime import datetime
from typing import Any, get_args

from sqlalchemy import JSON, BigInteger, CheckConstraint, Index, Text, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column, relationship

from registry.names import delta_name
from registry.records import DeltaStatus, EventKind, LineageKind, OutboxTopic, PositionState, require_digest
from registry.schema.base import Base, check_in, foreign_key, now, partial_index

# Positions that may be claimed next; a failed arrival is claimable while it has retries left, after all others.
CLAIMABLE = "(state = 'waiting' OR (state = 'failed' AND retries > 0))"


class Backbone(Base):
    """A frozen pretrained transformer; the columns are the fields of `BackboneRecord`."""

    __tablename__ = "backbones"

    fingerprint: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    family: Mapped[str]
    hidden_size: Mapped[int]
    parameters: Mapped[int] = mapped_column(BigInteger)
    pooling: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Task(Base):
    """Labelled rows of one kind with one metric.

    Attributes:
        name: the task's name.
        kind: classification, regression, span or generation.
        metric: the metric that decides between versions.
        labels: sorted; empty for kinds without labels.
        spec: the task's spec.
        fingerprints: SHA-256 of the rows, by split.
        rows: number of rows, by split.
        created_at: time of registration.
        purged_at: time since when only the name is left.
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
    """Tasks in order of arrival on one backbone; the stream without a backbone holds the arrivals.

    Attributes:
        name: the stream's name.
        backbone_id: the backbone; NULL for the arrivals.
        spec: the stream file.
        digest: digest of `spec`.
        mlflow_run: id of its MLflow run.
        created_at: time of registration.
        backbone: the row of `backbone_id`.
        positions: in order.
    """

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
    """One position of a stream, or one arrival.

    Attributes:
        stream_id: the stream.
        number: its place in the stream, from 0; arrivals from 1.
        task_id: the task, once learned.
        task_name: the task's name.
        recipe: digest of everything that determines the result of learning it; of an arrival, digest of its spec.
        state: waiting, held, learned, failed or cancelled.
        holder: the process that is learning it, `host:pid:start`.
        lease_until: end of the holder's lease, by the database's clock.
        attempts: how many times learning was started; for an arrival since its last checkpoint, releases not counted.
        delta_id: the learned delta.
        error: message of the last failure.
        priority: of an arrival; higher ones are learned first.
        submitted_at: of an arrival: time of submission; NULL for positions of streams.
        spec: of an arrival: the submitted stream of one task, with the folder of its files.
        backbone: of an arrival: name of the only backbone it may be learned on; NULL for any.
        retries: of an arrival: automatic retries left.
        stream: the row of `stream_id`.
        delta: the row of `delta_id`.
    """

    __tablename__ = "positions"
    __table_args__ = (
        UniqueConstraint("stream_id", "number"),
        Index(None, "stream_id", "state", "number"),
        # A task is learned by one holder at a time.
        partial_index("uq_positions_held", "state = 'held'", "stream_id", "task_name"),
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


# Waiting before failed, higher priority first, then the earlier one.
_claim_order = (Position.stream_id, Position.backbone, Position.state.desc(), Position.priority.desc(), Position.number)
partial_index("ix_positions_free", CLAIMABLE, *_claim_order)


class Delta(Base):
    """One version of a task's delta; the columns are the fields of `DeltaRecord` and `StoredDelta`.

    Attributes:
        digest: blob of its values.
        predictions: blob of its predictions on the test rows.
        replay: blob of its outputs on fixed inputs.
        data: the `DataRecord` that it was learned from.
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
        """The digest of its values.

        Raises:
            NotFound: the values were purged.
        """
        return require_digest(self.digest, self.name)


class Split(Base):
    """A split that a delta was learned from or scored on, identified by the fingerprint of its rows.

    Attributes:
        delta_id: the delta.
        split: the split's name.
        fingerprint: SHA-256 of the rows.
        rows: number of rows.
    """

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
    """An edge from a parent delta to its child; parents have lower ids, so that cycles are impossible.

    Attributes:
        child_id: the derived delta.
        parent_id: the delta it was derived from.
        kind: how it was derived.
        weight: the parent's share in the child.
        score: the start's score with this parent, on held-out rows before training.
        gain: `score` minus the score of the start from scratch.
    """

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
    """The signature of a delta's task: additive statistics of its rows in frozen features.

    Attributes:
        delta_id: the delta.
        digest: blob of the statistics.
        rows: number of rows they were computed over.
        layer: layer of the frozen features.
        pooling: pooling of the frozen features.
        routing: blob of the further statistics that routers use.
    """

    __tablename__ = "signatures"
    __table_args__ = (CheckConstraint("rows >= 0", name="rows"),)

    delta_id: Mapped[int] = foreign_key("deltas", index=False, unique=True)
    digest: Mapped[str]
    rows: Mapped[int]
    layer: Mapped[int] = mapped_column(default=-1)
    pooling: Mapped[str]
    routing: Mapped[str | None]


class Checkpoint(Base):
    """The training state of a position, to resume from.

    Attributes:
        position_id: the position.
        epoch: number of completed epochs.
        digest: blob of the state.
        created_at: time of the checkpoint.
    """

    __tablename__ = "checkpoints"
    __table_args__ = (CheckConstraint("epoch >= 0", name="epoch"),)

    position_id: Mapped[int] = foreign_key("positions", index=False, unique=True)
    epoch: Mapped[int]
    digest: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Event(Base):
    """An event in the history of a task's deltas.

    Attributes:
        task_id: the task.
        delta_id: the delta.
        what: learned, imported, promoted, succeeded, archived or purged.
        reason: in words.
        created_at: time of the event.
    """

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
    """A message for MLflow, written in the transaction that it reports and deleted once sent.

    Attributes:
        message: the topic.
        subject: name of a delta, a stream or a task.
        about: details that the sender cannot read from the registry.
        attempts: how many times sending was started.
        due_at: earliest time of the next attempt; while held, the end of the lease.
        holder: the sender that holds it.
        error: message of the last failure.
        created_at: time of enqueuing.
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
