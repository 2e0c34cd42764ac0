"""The run of a delta: how it was made, how well it does, and the delta itself."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from continual.tracking.client import (
    MILLISECONDS,
    DependencyPendingError,
    MlflowClientContext,
    escape_name,
    flatten,
    to_millis,
)
from registry import OutboxMessage, StoredDelta, StoredScore, delete_sent, is_purged

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


def sync_delta_run(to: MlflowClientContext, pending: OutboxMessage) -> None:
    """Makes the run of a delta, unless it is there, and notes it in the registry.

    Raises: NotYet, where its stream has no run.
    """
    with to.registry.unit_of_work() as unit:
        if is_purged(unit, pending.subject):  # before MLflow heard of it
            delete_sent(unit, pending)
            return
    delta = to.registry.delta(pending.subject)
    kept = to.active_run(delta.mlflow_run)
    run = kept.info.run_id if kept else _run(to, delta)
    with to.registry.unit_of_work() as unit:
        wanted = delete_sent(unit, pending) and not is_purged(unit, delta.name)
        if wanted:
            unit.set_mlflow_run(delta.name, run)
    if not wanted and kept is None:
        to.client.delete_run(run)


def _run(to: MlflowClientContext, delta: StoredDelta) -> str:
    """The run of a delta: one that was finished and not noted, else a new one in place of what was begun."""
    key = to.key("delta", delta.name, delta.values)
    for begun in to.find_runs("key", key):
        if begun.info.status == "FINISHED":
            return str(begun.info.run_id)
        to.client.delete_run(begun.info.run_id)
    began = to_millis(delta.created_at) - int(delta.seconds * MILLISECONDS)
    run: str = to.client.create_run(to.experiment, start_time=began, tags=_tags(to, delta, key)).info.run_id
    scores = [score for score in to.registry.scores(delta=delta.name) if not score.stream]
    metrics = {(_metric(score), score.step): score.value for score in scores}
    to.log(run, _parameters(delta), metrics, at=delta.created_at)
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"{escape_name(delta.name)}.safetensors"
        file.write_bytes(to.registry.blobs.get(delta.values))
        to.client.log_artifact(run, str(file), "delta")
    if delta.tried:
        to.client.log_dict(run, {"tried": list(delta.tried)}, "tried.json")
    to.client.set_terminated(run, end_time=to_millis(delta.created_at))
    return run


def _tags(to: MlflowClientContext, delta: StoredDelta, key: str) -> dict[str, str]:
    own = {
        "delta": delta.name,
        "task": delta.task,
        "task_key": to.key("task", delta.task),
        "digest": delta.values,
        "backbone": delta.backbone,
        "warm_start": delta.warm_start,
        "parents": ", ".join(edge["parent"] for edge in to.registry.lineage(delta.name, depth=1)),
    }
    stream = to.registry.stream_of(delta.name)
    if stream is None:
        return to.run_tags(key, name=delta.name, **own)
    parent = to.active_run(to.registry.stream(stream).mlflow_run)
    if parent is None:
        raise DependencyPendingError(f"stream {stream!r} has no run yet")
    return to.run_tags(key, name=delta.name, stream=stream, **own) | {"mlflow.parentRunId": parent.info.run_id}


def _parameters(delta: StoredDelta) -> dict[str, Any]:
    return flatten({name: getattr(delta, name) for name in LOGGED_PARAMETERS} | {"labels": len(delta.labels)})


def _metric(score: StoredScore) -> str:
    """A metric's name in MLflow: `test_accuracy` is the delta's own score, others say what they are."""
    return f"{score.split}_{score.metric}" if score.mode == "oracle" else f"{score.mode}_{score.split}_{score.metric}"
