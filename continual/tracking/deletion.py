"""Remove from MLflow what was purged from the registry."""

from collections.abc import Callable, Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from continual.tracking.champion_models import task_model
from continual.tracking.client import MlflowClientContext
from continual.tracking.registered_models import find_model, list_versions
from continual.tracking.stream_models import stream_model
from registry import OutboxMessage, delete_sent, is_purged

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion


def delete_purged(context: MlflowClientContext, pending: OutboxMessage) -> None:
    """Remove the runs and model versions of a task's purged deltas, with their artifacts.

    They are the runs that the message names, and those with the task's key, which the registry may not know. Of the
    streams' models, the versions that reference such a delta are removed.
    """
    task = pending.subject.partition("@")[0]
    runs_of_message = [run for run in map(context.active_run, pending.about.get("runs", [])) if run]
    runs_of_task = context.find_runs("task_key", context.key("task", task), deleted=True)
    purged_runs = [run for run in runs_of_task if _is_purged(context, run.data.tags["continual.delta"])]
    for run in {run.info.run_id: run for run in (*runs_of_message, *purged_runs)}.values():
        _delete_run(context, run)
    _delete_versions(context, task_model(context, task), lambda version: [version.tags["continual.delta"]])
    for stream in context.registry.streams():
        if task in {position.task for position in stream.positions}:
            _delete_versions(
                context, stream_model(context, stream.name), lambda version: _referenced_deltas(context, version)
            )
    with context.registry.unit_of_work() as unit:
        delete_sent(unit, pending)


def _is_purged(context: MlflowClientContext, delta: str) -> bool:
    with context.registry.unit_of_work() as unit:
        return is_purged(unit, delta)


def _delete_run(context: MlflowClientContext, run: "Run") -> None:
    _artifact_repository(context, run.info.artifact_uri).delete_artifacts()
    if run.info.lifecycle_stage == "active":
        context.client.delete_run(run.info.run_id)
    store = context.client._tracking_client.store
    # As `mlflow gc` does; the client of a server has no such call: there, that command removes the run for good.
    if hasattr(store, "_hard_delete_run"):
        _delete_datasets(store, run.info.run_id)
        store._hard_delete_run(run.info.run_id)


def _delete_datasets(store: Any, run_id: str) -> None:
    """Delete the records of a run's rows, which MLflow keeps beyond the run, unless another run has them too."""
    from mlflow.store.tracking.dbmodels.models import SqlDataset, SqlInput, SqlInputTag

    with store.ManagedSessionMaker(read_only=False) as session:
        inputs = session.query(SqlInput).filter(SqlInput.destination_id == run_id)
        ids, datasets = ([getattr(item, name) for item in inputs] for name in ("input_uuid", "source_id"))
        session.query(SqlInputTag).filter(SqlInputTag.input_uuid.in_(ids)).delete(synchronize_session=False)
        inputs.delete(synchronize_session=False)
        is_unused = SqlDataset.dataset_uuid.not_in(session.query(SqlInput.source_id))
        unused = session.query(SqlDataset).filter(SqlDataset.dataset_uuid.in_(datasets), is_unused)
        unused.delete(synchronize_session=False)


def _delete_versions(
    context: MlflowClientContext, name: str, deltas_of: "Callable[[ModelVersion], Collection[str]]"
) -> None:
    """Delete the versions of a model that reference purged deltas, and the model where none is left."""
    if find_model(context, name) is None:
        return
    versions = list_versions(context, name)
    purged = [version for version in versions if any(_is_purged(context, delta) for delta in deltas_of(version))]
    for version in purged:
        _artifact_repository(context, version.source).delete_artifacts()
        for tag in version.tags:  # MLflow keeps a deleted version's tags
            context.client.delete_model_version_tag(name, version.version, tag)
        context.client.delete_model_version(name, version.version)
    if len(purged) == len(versions):
        context.client.delete_registered_model(name)


def _referenced_deltas(context: MlflowClientContext, version: "ModelVersion") -> Collection[str]:
    """Return the deltas that a version of a stream's model references, as its files list them."""
    from mlflow.models import Model

    with TemporaryDirectory() as folder:
        _artifact_repository(context, version.source).download_artifacts("MLmodel", folder)
        deltas: Collection[str] = Model.load(Path(folder) / "MLmodel").flavors["python_function"]["config"]["deltas"]
        return deltas


def _artifact_repository(context: MlflowClientContext, uri: str) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(uri, tracking_uri=context.locations.mlflow)
