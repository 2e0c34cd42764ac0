"""Frozen records of streams, and of the runs of continual-learning strategies over them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from registry.records import PositionState, ScoreMode


@dataclass(frozen=True, kw_only=True)
class StoredPosition:
    """One position of a stream.

    Attributes:
        number: Its place in the stream, from 0.
        task: The task's name.
        recipe: Digest of everything that determines the result of learning it.
        state: Waiting, held, learned, failed or cancelled.
        delta: The learned delta, if any.
        error: Message of the last failure.
        holder: The process that is learning it.
        attempts: How many times learning it was started.
        purged: True if the learned delta was purged.
    """

    number: int
    task: str
    recipe: str
    state: PositionState
    delta: str | None
    error: str | None
    holder: str | None
    attempts: int
    purged: bool


@dataclass(frozen=True, kw_only=True)
class StoredStream:
    """A registered stream.

    Attributes:
        name: The stream's name.
        backbone: The backbone's fingerprint.
        spec: The stream file as JSON.
        digest: Digest of `spec`.
        mlflow_run: Id of its MLflow run.
        created_at: Time of registration.
        positions: In order.
    """

    name: str
    backbone: str
    spec: dict[str, Any]
    digest: str
    mlflow_run: str | None
    created_at: datetime
    positions: tuple[StoredPosition, ...]


@dataclass(frozen=True, kw_only=True)
class StrategyRecord:
    """A run of a continual-learning strategy over a stream, for comparison.

    Attributes:
        stream: The stream's name.
        strategy: The strategy's name.
        recipe: Digest of everything that determines the result.
        settings: The strategy's settings.
        tasks: The tasks' names, in order.
    """

    stream: str
    strategy: str
    recipe: str
    settings: dict[str, Any]
    tasks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StepScore:
    """A value measured on a task's test rows after a step of a strategy.

    Attributes:
        task: The task's name.
        mode: How the rows were answered: task known, routed, or by a baseline.
        metric: The metric's name.
        value: A fraction.
        rows: Number of rows.
    """

    task: str
    mode: ScoreMode
    metric: str
    value: float
    rows: int


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """The result of a strategy after the task at position `number`.

    Attributes:
        number: The position.
        seconds: Duration of learning the task.
        parameters: Parameters that answer all tasks so far.
        bytes: Size of everything stored for all tasks so far.
        scores: Measured after the step.
    """

    number: int
    seconds: float
    parameters: int
    bytes: int
    scores: tuple[StepScore, ...]


@dataclass(frozen=True, kw_only=True)
class StoredStrategy(StrategyRecord):
    """A registered run of a strategy, with the steps done so far.

    Attributes:
        id: Its row.
        state: Digest of the state to continue from; None before the first step and when finished.
        mlflow_run: Id of its MLflow run.
        created_at: Start of the run.
        finished_at: None while it is unfinished.
        steps: In order.
    """

    id: int
    state: str | None
    mlflow_run: str | None
    created_at: datetime
    finished_at: datetime | None
    steps: tuple[StepRecord, ...]
