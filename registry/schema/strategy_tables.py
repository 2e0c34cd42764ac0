"""The tables of strategy runs: a stream learned by other continual-learning strategies."""

from datetime import datetime
from typing import Any, get_args

from sqlalchemy import JSON, BigInteger, CheckConstraint, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from registry.records import ScoreMode
from registry.schema.base import Base, check_in, foreign_key, now
from registry.schema.tables import Stream


class StrategyRun(Base):
    """A stream learned by a strategy with one recipe (its tasks' rows, seed and settings).

    Attributes:
        stream_id: The stream.
        strategy: The strategy's name.
        recipe: Digest of everything that determines the result.
        settings: The strategy's settings.
        tasks: The tasks' names, in order.
        state: Digest of the state to resume from; NULL before the first step and when finished.
        mlflow_run: Id of its MLflow run.
        created_at: Start of the run.
        finished_at: NULL while it is unfinished.
        stream: The row of `stream_id`.
        steps: In order.
    """

    __tablename__ = "strategy_runs"
    __table_args__ = (
        UniqueConstraint("stream_id", "strategy", "recipe"),
        CheckConstraint("state IS NULL OR finished_at IS NULL", name="finished"),
    )

    stream_id: Mapped[int] = foreign_key("streams", index=False)  # the unique index begins with it
    strategy: Mapped[str]
    recipe: Mapped[str]
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)
    tasks: Mapped[list[str]] = mapped_column(JSON)
    state: Mapped[str | None]
    mlflow_run: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    finished_at: Mapped[datetime | None]

    stream: Mapped[Stream] = relationship(lazy="joined", innerjoin=True)
    steps: Mapped[list["StrategyStep"]] = relationship(
        order_by="StrategyStep.number", lazy="selectin", cascade="all, delete-orphan"
    )


class StrategyStep(Base):
    """The result of a strategy after the task at position `number`.

    Attributes:
        run_id: The run.
        number: The position.
        seconds: Duration of learning the task.
        parameters: Parameters that answer all tasks so far.
        bytes: Size of everything stored for all tasks so far.
        scores: Measured after the step.
    """

    __tablename__ = "strategy_steps"
    __table_args__ = (
        UniqueConstraint("run_id", "number"),
        CheckConstraint("number >= 0", name="number"),
        CheckConstraint("seconds >= 0 AND parameters >= 0 AND bytes >= 0", name="size"),
    )

    run_id: Mapped[int] = foreign_key("strategy_runs", index=False)  # the unique index begins with it
    number: Mapped[int]
    seconds: Mapped[float]
    parameters: Mapped[int] = mapped_column(BigInteger)
    bytes: Mapped[int] = mapped_column(BigInteger)

    scores: Mapped[list["StrategyScore"]] = relationship(
        order_by="StrategyScore.id", lazy="selectin", cascade="all, delete-orphan"
    )


class StrategyScore(Base):
    """A value measured on a task's test rows after a step.

    Attributes:
        step_id: The step.
        task: The task's name.
        mode: Oracle, routed, or a baseline.
        metric: The metric's name.
        value: A fraction.
        rows: Number of rows.
    """

    __tablename__ = "strategy_scores"
    __table_args__ = (
        UniqueConstraint("step_id", "task", "mode", "metric"),
        check_in("mode", get_args(ScoreMode)),
        CheckConstraint("rows >= 0", name="rows"),
    )

    step_id: Mapped[int] = foreign_key("strategy_steps", index=False)  # the unique index begins with it
    task: Mapped[str]
    mode: Mapped[ScoreMode] = mapped_column(Text)
    metric: Mapped[str]
    value: Mapped[float]
    rows: Mapped[int]
