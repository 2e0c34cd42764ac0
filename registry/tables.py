"""The tables: what has been learned, on which backbone, from what, and how well."""

from datetime import datetime
from typing import Any, get_args

from sqlalchemy import JSON, BigInteger, CheckConstraint, Index, Text, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column, relationship

from registry.base import Base, now, one_of, refers_to, where
from registry.names import delta_name
from registry.records import Message, Mode, Origin, State, Status, What, kept

ALONE = "mode = 'oracle' AND stream_id IS NULL AND step = 0"  # a delta's own score, with the task known


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
    """Tasks in order of arrival on one backbone."""

    __tablename__ = "streams"

    name: Mapped[str] = mapped_column(unique=True)
    backbone_id: Mapped[int] = refers_to("backbones")
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    digest: Mapped[str]
    mlflow_run: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=now)

    backbone: Mapped[Backbone] = relationship(lazy="joined", innerjoin=True)
    positions: Mapped[list["Position"]] = relationship(order_by="Position.number", back_populates="stream")


class Position(Base):
    """One place in a stream, and who is learning it: `holder`, until `lease_until` by the database's clock.

    attempts: how often learning it was begun.
    """

    __tablename__ = "positions"
    __table_args__ = (
        UniqueConstraint("stream_id", "number"),
        one_of("state", get_args(State)),
        CheckConstraint("number >= 0", name="number"),
        CheckConstraint("(state = 'held') = (holder IS NOT NULL)", name="held_by_one"),
        CheckConstraint("(state = 'held') = (lease_until IS NOT NULL)", name="leased"),
        CheckConstraint("attempts >= 0", name="attempts"),
    )

    stream_id: Mapped[int] = refers_to("streams", index=False)  # the unique index begins with it
    number: Mapped[int]
    task_id: Mapped[int | None] = refers_to("tasks")
    task_name: Mapped[str]
    recipe: Mapped[str]
    state: Mapped[State] = mapped_column(Text, default="waiting")
    holder: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(default=0, server_default="0")
    delta_id: Mapped[int | None] = refers_to("deltas")
    error: Mapped[str | None] = mapped_column(Text)

    stream: Mapped[Stream] = relationship(back_populates="positions")
    delta: Mapped["Delta | None"] = relationship()


class Delta(Base):
    """The edits and head that one task owns, in one version.

    digest, predictions, replay: blobs of its values, of what it says of the test rows, and of fixed inputs ·
    data: a DataRecord, what it was learned from.
    """

    __tablename__ = "deltas"
    __table_args__ = (
        UniqueConstraint("task_id", "version"),
        one_of("status", get_args(Status)),
        CheckConstraint("version >= 1", name="version"),
        CheckConstraint("(status = 'purged') = (digest IS NULL)", name="purged"),
        CheckConstraint("bytes >= 0 AND parameters >= 0 AND share >= 0", name="size"),
        Index(None, "backbone_id", "id"),
        where("uq_deltas_champion", "status = 'champion'", "task_id", "backbone_id"),
    )

    task_id: Mapped[int] = refers_to("tasks", index=False)  # the unique index begins with it
    backbone_id: Mapped[int] = refers_to("backbones", index=False)  # an index above begins with it
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
    status: Mapped[Status] = mapped_column(Text)
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
        return kept(self.digest, self.name)


class Split(Base):
    """Rows that a delta was learned from or scored on: a split of its task as it was then, by their fingerprint."""

    __tablename__ = "splits"
    __table_args__ = (
        UniqueConstraint("delta_id", "split"),
        Index(None, "fingerprint", "delta_id"),
        CheckConstraint("rows >= 0", name="rows"),
    )

    delta_id: Mapped[int] = refers_to("deltas", index=False)  # the unique index begins with it
    split: Mapped[str]
    fingerprint: Mapped[str]
    rows: Mapped[int]


class Lineage(Base):
    """One delta came from another. Parents are registered first, so the check makes cycles impossible."""

    __tablename__ = "lineage"
    __table_args__ = (
        UniqueConstraint("child_id", "parent_id", "kind"),
        CheckConstraint("parent_id < child_id", name="parent_first"),
        one_of("kind", get_args(Origin)),
        Index(None, "parent_id", "id"),
    )

    child_id: Mapped[int] = refers_to("deltas", index=False)  # the unique index begins with it
    parent_id: Mapped[int] = refers_to("deltas", index=False)  # an index above begins with it
    kind: Mapped[Origin] = mapped_column(Text)
    weight: Mapped[float]
    score: Mapped[float | None]
    gain: Mapped[float | None]


class ScoreRow(Base):
    """One measured value of a delta on its task; at most one for each place where it can be measured."""

    __tablename__ = "scores"
    # Two partial indices, because NULLs are distinct in a unique one and most scores belong to no stream.
    __table_args__ = (
        one_of("mode", get_args(Mode)),
        CheckConstraint("rows >= 0", name="rows"),
        CheckConstraint("low <= high", name="interval"),
        Index(None, "step", "id"),
        Index(None, "task_id", "id"),
        where("ix_scores_best", ALONE, "split", "task_id", "metric", "value"),
        where("ix_scores_stream", "stream_id IS NOT NULL", "stream_id", "step", "id"),
        *(
            where(f"uq_scores_{name}", f"stream_id IS {null}", "delta_id", *columns, "mode", "split", "metric", "step")
            for name, columns, null in (("alone", (), "NULL"), ("in_stream", ("stream_id",), "NOT NULL"))
        ),
    )

    delta_id: Mapped[int] = refers_to("deltas")
    task_id: Mapped[int] = refers_to("tasks", index=False)  # indices above begin with these two
    split: Mapped[str]
    metric: Mapped[str]
    value: Mapped[float]
    rows: Mapped[int]
    low: Mapped[float | None]
    high: Mapped[float | None]
    step: Mapped[int] = mapped_column(default=0)
    mode: Mapped[Mode] = mapped_column(Text)
    stream_id: Mapped[int | None] = refers_to("streams", index=False)


class Signature(Base):
    """Sums over a task's rows in frozen features, as a version of its delta has them; routing: what routers need."""

    __tablename__ = "signatures"
    __table_args__ = (CheckConstraint("rows >= 0", name="rows"),)

    delta_id: Mapped[int] = refers_to("deltas", index=False, unique=True)
    digest: Mapped[str]
    rows: Mapped[int]
    layer: Mapped[int] = mapped_column(default=-1)
    pooling: Mapped[str]
    routing: Mapped[str | None]


class Confusion(Base):
    """How many test rows of a delta were sent to another, of those learned up to position `step` of a stream."""

    __tablename__ = "confusions"
    __table_args__ = (
        UniqueConstraint("stream_id", "step", "delta_id", "routed_to_id"),
        CheckConstraint("rows > 0", name="rows"),
    )

    stream_id: Mapped[int] = refers_to("streams", index=False)  # the unique index begins with it
    step: Mapped[int]
    delta_id: Mapped[int] = refers_to("deltas")
    routed_to_id: Mapped[int] = refers_to("deltas")
    rows: Mapped[int]

    delta: Mapped[Delta] = relationship(foreign_keys=delta_id, lazy="joined", innerjoin=True)
    routed_to: Mapped[Delta] = relationship(foreign_keys=routed_to_id, lazy="joined", innerjoin=True)


class Checkpoint(Base):
    """How far the learning of a position has come: after `epoch`, a blob to go on from."""

    __tablename__ = "checkpoints"
    __table_args__ = (CheckConstraint("epoch >= 0", name="epoch"),)

    position_id: Mapped[int] = refers_to("positions", index=False, unique=True)
    epoch: Mapped[int]
    digest: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Event(Base):
    """What happened to a task's delta, and why: the history of who served."""

    __tablename__ = "events"
    __table_args__ = (
        one_of("what", get_args(What)),
        Index(None, "created_at", "id"),
        Index(None, "task_id", "created_at", "id"),
    )

    task_id: Mapped[int] = refers_to("tasks", index=False)  # an index above begins with it
    delta_id: Mapped[int | None] = refers_to("deltas")
    what: Mapped[What] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=now)


class Outbox(Base):
    """What MLflow has not been told yet; written with what it tells of, deleted once MLflow has it.

    subject: the name of a delta, a stream or a task · about: what the sender cannot ask the registry any more ·
    holder: who is sending it, until `due_at`; without one, `due_at` is when it may be sent next.
    """

    __tablename__ = "outbox"
    __table_args__ = (one_of("message", get_args(Message)), CheckConstraint("attempts >= 0", name="attempts"))

    message: Mapped[Message] = mapped_column(Text)
    subject: Mapped[str] = mapped_column(index=True)
    about: Mapped[dict[str, Any]] = mapped_column(JSON, server_default="{}")
    attempts: Mapped[int] = mapped_column(default=0, server_default="0")
    due_at: Mapped[datetime] = mapped_column(default=func.current_timestamp(), index=True)
    holder: Mapped[str | None]
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=now)
