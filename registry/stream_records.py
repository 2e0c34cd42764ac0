"""Frozen records of streams, and of the runs of continual-learning strategies over them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from registry.records import PositionState, ScoreMode


@dataclass(frozen=True, kw_only=True)
class StoredPosition:
    """One position of a stream.

    Attributes:
        number: its place in the stream, from 0.
        task: the task's name.
        recipe: digest of everything that determines the result of learning it.
        state: waiting, held, learned, failed or cancelled.
        delta: the learned delta, if any.
        error: message of the last failure.
        holder: the process that is learning it.
        attempts: how many times learning it was started.
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
        name: the stream's name.
        backbone: the backbone's fingerprint.
        spec: the stream file as JSON.
        digest: digest of `spec`.
        mlflow_run: id of its MLflow run.
        created_at: time of registration.
        positions: in order.
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
        stream: the stream's name.
        strategy: the strategy's name.
        recipe: digest of everything that determines the result.
        settings: the strategy's settings.
        tasks: the tasks' names, in order.
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
        task: the task's name.
        mode: how the rows were answered: task known, routed, or by a baseline.
        metric: the metric's name.
        value: a fraction.
        rows: number of rows.
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
        number: the position.
        seconds: duration of learning the task.
        parameters: parameters that answer all tasks so far.
        bytes: size of everything stored for all tasks so far.
        scores: measured after the step.
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
        id: its row.
        state: digest of the state to continue from; None before the first step and when finished.
        mlflow_run: id of its MLflow run.
        created_at: start of the run.
        finished_at: None while it is unfinished.
        steps: in order.
    """

    id: int
    state: str | None
    mlflow_run: str | None
    created_at: datetime
    finished_at: datetime | None
    steps: tuple[StepRecord, ...]
