"""The MLflow run of a delta: its parameters, scores and values."""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from continual.reports.classes import class_report
from continual.reports.delta_markdown import delta_markdown
from continual.tracking.client import (
    MILLISECONDS,
    DependencyPendingError,
    MlflowClientContext,
    escape_name,
    flatten,
    to_millis,
)
from registry import DataRecord, OutboxMessage, StoredDelta, StoredScore, delete_sent, is_purged, redact

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

LOGGED_PARAMETERS = (
    "task",
    "kind",
    "method",
    "settings",
    "parameters",
    "share",
    "bytes",
    "seed",
    "warm_start",
    "version",
)
MAX_NOTE = 8000  # characters of a tag that MLflow accepts
MAX_DATASET_NAME, MAX_DATASET_DIGEST = 500, 36  # characters of a dataset's name and digest


def sync_delta_run(context: MlflowClientContext, pending: OutboxMessage) -> None:
    """Create the run of a delta where it is missing, note it in the registry, and delete the message.

    Raises:
        DependencyPendingError: The delta's stream has no run yet.
    """
    with context.registry.unit_of_work() as unit:
        if is_purged(unit, pending.subject):  # purged before it was sent
            delete_sent(unit, pending)
            return
    delta = context.registry.delta(pending.subject)
    existing = context.active_run(delta.mlflow_run)
    run_id = existing.info.run_id if existing else _ensure_run(context, delta)
    with context.registry.unit_of_work() as unit:
        is_noted = delete_sent(unit, pending) and not is_purged(unit, delta.name)
        if is_noted:
            unit.set_mlflow_run(delta.name, run_id)
    if not is_noted and existing is None:
        context.client.delete_run(run_id)


def _ensure_run(context: MlflowClientContext, delta: StoredDelta) -> str:
    """Return a finished run that the registry does not know yet, or a new one; delete unfinished ones."""
    key = context.key("delta", delta.name, delta.values)
    for existing in context.find_runs("key", key):
        if existing.info.status == "FINISHED":
            return str(existing.info.run_id)
        context.client.delete_run(existing.info.run_id)
    start_time = to_millis(delta.created_at) - int(delta.seconds * MILLISECONDS)
    run_id: str = context.client.create_run(
        context.experiment, start_time=start_time, tags=_tags(context, delta, key)
    ).info.run_id
    scores = [score for score in context.registry.scores(delta=delta.name) if not score.stream]
    metrics = {(_metric(score), score.step): score.value for score in scores}
    context.log(run_id, _parameters(delta), metrics, timestamp=delta.created_at)
    if delta.data:
        context.client.log_inputs(run_id, list(_datasets(delta.task, delta.data)))
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"{escape_name(delta.name)}.safetensors"
        file.write_bytes(context.registry.blobs.get(delta.values))
        context.client.log_artifact(run_id, str(file), "delta")
    if (classes := class_report(delta))["per_class"]:
        context.client.log_dict(run_id, classes, "per_class.json")
    if delta.tried:
        context.client.log_dict(run_id, {"tried": list(delta.tried)}, "tried.json")
    context.client.set_terminated(run_id, end_time=to_millis(delta.created_at))
    return run_id


def _tags(context: MlflowClientContext, delta: StoredDelta, key: str) -> dict[str, str]:
    tags = {
        "delta": delta.name,
        "task": delta.task,
        "task_key": context.key("task", delta.task),
        "digest": delta.values,
        "backbone": delta.backbone,
        "warm_start": delta.warm_start,
        "parents": ", ".join(edge["parent"] for edge in context.registry.lineage(delta.name, depth=1)),
    }
    shown = {
        "mlflow.note.content": delta_markdown(context.registry, delta.name)[:MAX_NOTE],
        "mlflow.source.name": " ".join(("continual", delta.versions.get("continual", ""))).strip(),
        "mlflow.source.type": "LOCAL",
    }
    stream = context.registry.stream_of(delta.name)
    if stream is None:
        return context.run_tags(key, name=delta.name, **tags) | shown
    parent = context.active_run(context.registry.stream(stream).mlflow_run)
    if parent is None:
        raise DependencyPendingError(f"stream {stream!r} has no run yet")
    shown["mlflow.parentRunId"] = parent.info.run_id
    return context.run_tags(key, name=delta.name, stream=stream, **tags) | shown


def _datasets(task: str, data: DataRecord) -> "Iterator[DatasetInput]":
    """Yield the rows of each split as a dataset of MLflow: where they are from and their digest, not the rows."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = CodeDatasetSource({"source": redact(json.dumps(data.spec.get("source"))), "seed": data.seed})
    for split, digest in data.fingerprints.items():
        name = f"{task} {split}"[:MAX_DATASET_NAME]
        profile = json.dumps({"num_rows": data.rows.get(split), "sha256": digest})
        dataset = Dataset(name, digest[:MAX_DATASET_DIGEST], "code", source.to_json(), profile=profile)
        yield DatasetInput(dataset, [InputTag("mlflow.data.context", split)])


def _parameters(delta: StoredDelta) -> dict[str, Any]:
    return flatten({name: getattr(delta, name) for name in LOGGED_PARAMETERS} | {"labels": len(delta.labels)})


def _metric(score: StoredScore) -> str:
    """Return a score's name in MLflow, such as `test_accuracy`; other modes than oracle are a prefix."""
    return f"{score.split}_{score.metric}" if score.mode == "oracle" else f"{score.mode}_{score.split}_{score.metric}"
