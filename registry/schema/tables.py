"""The main tables: backbones, tasks, streams, deltas, lineage, keys, outbox; not `score_tables`."""

from datetime import datetime
from typing import Any, Literal, get_args

from sqlalchemy import JSON, BigInteger, CheckConstraint, Index, Text, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column, relationship

from registry.names import delta_name
from registry.records import DeltaStatus, EventKind, LineageKind, OutboxTopic, PositionState, require_digest
from registry.schema.base import Base, check_in, foreign_key, now, partial_index

# Positions that may be claimed next; a failed arrival is claimable while it has retries left, after all others.
CLAIMABLE = "(state = 'waiting' OR (state = 'failed' AND retries > 0))"
Role = Literal["read", "admin"]
"""Of an API key: `admin` may also change what is learned and what serves."""


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
        name: The task's name.
        kind: Classification, regression, span or generation.
        metric: The metric that decides between versions.
        labels: Sorted; empty for kinds without labels.
        spec: The task's spec.
        fingerprints: SHA-256 of the rows, by split.
        rows: Number of rows, by split.
        created_at: Time of registration.
        purged_at: Time since when only the name is left.
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
        name: The stream's name.
        backbone_id: The backbone; NULL for the arrivals.
        spec: The stream file.
        digest: Digest of `spec`.
        mlflow_run: Id of its MLflow run.
        created_at: Time of registration.
        backbone: The row of `backbone_id`.
        positions: In order.
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
        stream_id: The stream.
        number: Its place in the stream, from 0; arrivals from 1.
        task_id: The task, once learned.
        task_name: The task's name.
        recipe: Digest of everything that determines the result of learning it; of an arrival, digest of its spec.
        state: Waiting, held, learned, failed or cancelled.
        holder: The process that is learning it, `host:pid:start`.
        lease_until: End of the holder's lease, by the database's clock.
        attempts: How many times learning was started; for an arrival since its last checkpoint, releases not counted.
        delta_id: The learned delta.
        error: Message of the last failure.
        priority: Of an arrival; higher ones are learned first.
        submitted_at: Of an arrival: time of submission; NULL for positions of streams.
        spec: Of an arrival: the submitted stream of one task, with the folder of its files.
        backbone: Of an arrival: name of the only backbone it may be learned on; NULL for any.
        retries: Of an arrival: automatic retries left.
        stream: The row of `stream_id`.
        delta: The row of `delta_id`.
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
        digest: Blob of its values.
        predictions: Blob of its predictions on the test rows.
        replay: Blob of its outputs on fixed inputs.
        data: The `DataRecord` that it was learned from.
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
            NotFound: The values were purged.
        """
        return require_digest(self.digest, self.name)


class Split(Base):
    """A split that a delta was learned from or scored on, identified by the fingerprint of its rows.

    Attributes:
        delta_id: The delta.
        split: The split's name.
        fingerprint: SHA-256 of the rows.
        rows: Number of rows.
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
        child_id: The derived delta.
        parent_id: The delta it was derived from.
        kind: How it was derived.
        weight: The parent's share in the child.
        score: The start's score with this parent, on held-out rows before training.
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
        delta_id: The delta.
        digest: Blob of the statistics.
        rows: Number of rows they were computed over.
        layer: Layer of the frozen features.
        pooling: Pooling of the frozen features.
        routing: Blob of the further statistics that routers use.
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
        position_id: The position.
        epoch: Number of completed epochs.
        digest: Blob of the state.
        created_at: Time of the checkpoint.
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
        task_id: The task.
        delta_id: The delta.
        what: Learned, imported, promoted, succeeded, archived or purged.
        reason: In words.
        created_at: Time of the event.
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
        message: The topic.
        subject: Name of a delta, a stream or a task.
        about: Details that the sender cannot read from the registry.
        attempts: How many times sending was started.
        due_at: Earliest time of the next attempt; while held, the end of the lease.
        holder: The sender that holds it.
        error: Message of the last failure.
        created_at: Time of enqueuing.
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


class ApiKey(Base):
    """A key that grants access to a server until it is revoked.

    Attributes:
        name: The key's name.
        digest: `registry.key_digest` of the secret, which is not stored.
        role: `read`, or `admin`, which may also change what is learned and what serves.
        created_at: Time of creation.
        revoked_at: Time of revocation.
    """

    __tablename__ = "api_keys"
    __table_args__ = (check_in("role", get_args(Role)), CheckConstraint("length(digest) = 64", name="digest"))

    name: Mapped[str] = mapped_column(unique=True)
    digest: Mapped[str] = mapped_column(unique=True)
    role: Mapped[Role] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=now)
    revoked_at: Mapped[datetime | None]


class RegistryIdentity(Base):
    """The registry's own id, independent of its database's location; one row, created on first use."""

    __tablename__ = "identity"
    __table_args__ = (CheckConstraint("id = 1", name="single"),)

    name: Mapped[str]
