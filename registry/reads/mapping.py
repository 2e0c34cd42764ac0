"""Conversion of ORM rows to frozen records and to the rows of `--json` listings."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Select
from sqlalchemy.orm import Session

from registry.names import delta_name
from registry.records import (
    AnswerCounts,
    BackboneRecord,
    Champion,
    DataRecord,
    DeltaStatus,
    StoredConfusion,
    StoredDelta,
    StoredScore,
    StoredSignature,
    TaskRecord,
    require_digest,
)
from registry.schema.score_tables import Confusion, ScoreRow
from registry.schema.strategy_tables import StrategyRun, StrategyStep
from registry.schema.tables import Backbone, Delta, Position, Signature, Stream, Task
from registry.stream_records import StepRecord, StepScore, StoredPosition, StoredStrategy, StoredStream

ListingRow = dict[str, Any]  # one object of a `--json` listing


def to_dicts(session: Session, query: Select[*tuple[Any, ...]]) -> list[ListingRow]:
    """Execute a query and return its rows by column label."""
    return [dict(row) for row in session.execute(query).mappings()]


def task_listing(task: Task, version: int | None, learned_at: datetime | None, score: float | None) -> ListingRow:
    """Return a row of `continual tasks`; `version`, `learned_at` and `score` are the champion's."""
    return {
        "task": task.name,
        "kind": task.kind,
        "metric": task.metric,
        "labels": len(task.labels),
        "rows": task.rows,
        "champion": None if version is None else delta_name(task.name, version),
        "score": score,
        "created_at": task.created_at.isoformat(),
        "champion_created_at": None if learned_at is None else learned_at.isoformat(),
    }


def delta_listing(delta: Delta, score: float | None) -> ListingRow:
    """Return a row of `continual deltas`; `score` is the oracle score on the test split."""
    return {
        "delta": delta.name,
        "task": delta.task.name,
        "version": delta.version,
        "method": delta.method,
        "parameters": delta.parameters,
        "share": delta.share,
        "bytes": delta.bytes,
        "status": delta.status,
        "reason": delta.reason,
        "score": score,
        "mlflow_run": delta.mlflow_run,
        "created_at": delta.created_at.isoformat(),
    }


def stored_task(row: Task) -> TaskRecord:
    """Return the record of a task."""
    return TaskRecord(
        name=row.name,
        kind=row.kind,
        metric=row.metric,
        labels=tuple(row.labels),
        spec=row.spec,
        fingerprints=row.fingerprints,
        rows=row.rows,
    )


def stored_backbone(row: Backbone) -> BackboneRecord:
    """Return the record of a backbone."""
    return BackboneRecord(
        fingerprint=row.fingerprint,
        name=row.name,
        family=row.family,
        hidden_size=row.hidden_size,
        parameters=row.parameters,
        pooling=row.pooling,
    )


def stored_champion(
    task: str,
    version: int,
    method: str,
    settings: dict[str, Any],
    budget: dict[str, Any],
    digest: str | None,
    created_at: datetime,
    spec: dict[str, Any],
) -> Champion:
    """Return the record of a champion."""
    name = delta_name(task, version)
    values = require_digest(digest, name)
    return Champion(
        task=task,
        delta=name,
        method=method,
        settings=settings,
        budget=budget,
        digest=values,
        created_at=created_at,
        is_routed=spec.get("route") is not False,
    )


def _data_record(stored: dict[str, Any], *, labels: int) -> DataRecord:
    answers = stored.get("answers")
    read = {
        "warnings": tuple(stored.get("warnings", ())),
        "answers": AnswerCounts(**{name: _frozen(values) for name, values in answers.items()}) if answers else None,
    }
    record = DataRecord(**stored | read)
    if record.answers and len(record.answers.support) != labels:
        raise ValueError(f"answers were counted for {len(record.answers.support)} labels, and the delta has {labels}")
    return record


def _frozen(value: Any) -> Any:
    """Return lists of JSON as tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def stored_delta(row: Delta) -> StoredDelta:
    """Return the record of a delta."""
    return StoredDelta(
        name=row.name,
        version=row.version,
        status=row.status,
        reason=row.reason,
        mlflow_run=row.mlflow_run,
        created_at=row.created_at,
        kind=row.task.kind,
        metric=row.task.metric,
        data=_data_record(row.data, labels=len(row.labels)) if row.data else None,
        task=row.task.name,
        backbone=row.backbone.fingerprint,
        method=row.method,
        settings=row.settings,
        budget=row.budget,
        digest=row.digest,
        bytes=row.bytes,
        parameters=row.parameters,
        share=row.share,
        seed=row.seed,
        labels=tuple(row.labels),
        versions=row.versions,
        warm_start=row.warm_start,
        seconds=row.seconds,
        examples_per_second=row.examples_per_second,
        predictions=row.predictions,
        replay=row.replay,
        tried=tuple(row.tried),
    )


def stored_score(row: ScoreRow, task: str, version: int, stream: str | None) -> StoredScore:
    """Return the record of a score."""
    return StoredScore(
        id=row.id,
        delta=delta_name(task, version),
        task=task,
        stream=stream,
        split=row.split,
        metric=row.metric,
        value=row.value,
        rows=row.rows,
        low=row.low,
        high=row.high,
        step=row.step,
        mode=row.mode,
    )


def stored_confusion(row: Confusion) -> StoredConfusion:
    """Return the record of misrouted rows."""
    return StoredConfusion(delta=row.delta.name, routed_to=row.routed_to.name, rows=row.rows, step=row.step)


def stored_signature(row: Signature, task: str, version: int) -> StoredSignature:
    """Return the record of a delta's signature."""
    return StoredSignature(
        task=task,
        delta=delta_name(task, version),
        digest=row.digest,
        rows=row.rows,
        pooling=row.pooling,
        layer=row.layer,
        routing=row.routing,
    )


def stored_stream(row: Stream, backbone: Backbone, positions: Sequence[StoredPosition]) -> StoredStream:
    """Return the record of a stream."""
    return StoredStream(
        name=row.name,
        backbone=backbone.fingerprint,
        spec=row.spec,
        digest=row.digest,
        mlflow_run=row.mlflow_run,
        created_at=row.created_at,
        positions=tuple(positions),
    )


def stored_position(row: Position, version: int | None, status: DeltaStatus | None) -> StoredPosition:
    """Return the record of a position; `version` and `status` are its delta's."""
    return StoredPosition(
        number=row.number,
        task=row.task_name,
        recipe=row.recipe,
        state=row.state,
        delta=None if version is None else delta_name(row.task_name, version),
        error=row.error,
        holder=row.holder,
        attempts=row.attempts,
        purged=status == "purged",
    )


def stored_strategy(row: StrategyRun) -> StoredStrategy:
    """Return the record of a strategy's run, with its steps in order."""
    return StoredStrategy(
        id=row.id,
        stream=row.stream.name,
        strategy=row.strategy,
        recipe=row.recipe,
        settings=row.settings,
        tasks=tuple(row.tasks),
        state=row.state,
        mlflow_run=row.mlflow_run,
        created_at=row.created_at,
        finished_at=row.finished_at,
        steps=tuple(map(_stored_step, row.steps)),
    )


def _stored_step(row: StrategyStep) -> StepRecord:
    scores = tuple(
        StepScore(task=score.task, mode=score.mode, metric=score.metric, value=score.value, rows=score.rows)
        for score in row.scores
    )
    return StepRecord(number=row.number, seconds=row.seconds, parameters=row.parameters, bytes=row.bytes, scores=scores)
