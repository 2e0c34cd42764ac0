"""What a person had removed from the registry is removed from MLflow too."""

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


def delete_purged(to: MlflowClientContext, pending: OutboxMessage) -> None:
    """Removes the runs and the model versions of a task's purged deltas, with their artifacts.

    They are those that the message names, and those that are found by the task, which the registry may not know of.
    Of the models of streams, the versions go that name such a delta.
    """
    task = pending.subject.partition("@")[0]
    named = [run for run in map(to.active_run, pending.about.get("runs", [])) if run]
    all_of_task = to.find_runs("task_key", to.key("task", task), deleted=True)
    found = [run for run in all_of_task if _gone(to, run.data.tags["continual.delta"])]
    for run in {run.info.run_id: run for run in (*named, *found)}.values():
        _remove(to, run)
    _remove_versions(to, task_model(to, task), lambda version: [version.tags["continual.delta"]])
    for stream in to.registry.streams():
        if task in {position.task for position in stream.positions}:
            _remove_versions(to, stream_model(to, stream.name), lambda version: _named(to, version))
    with to.registry.unit_of_work() as unit:
        delete_sent(unit, pending)


def _gone(to: MlflowClientContext, delta: str) -> bool:
    with to.registry.unit_of_work() as unit:
        return is_purged(unit, delta)


def _remove(to: MlflowClientContext, run: "Run") -> None:
    _artifacts(to, run.info.artifact_uri).delete_artifacts()
    if run.info.lifecycle_stage == "active":
        to.client.delete_run(run.info.run_id)
    store = to.client._tracking_client.store
    if hasattr(store, "_hard_delete_run"):  # as `mlflow gc` does; behind a server, that command removes it for good
        store._hard_delete_run(run.info.run_id)


def _remove_versions(to: MlflowClientContext, name: str, named: "Callable[[ModelVersion], Collection[str]]") -> None:
    """Removes the versions of a model that name purged deltas, and the model where none is left."""
    if find_model(to, name) is None:
        return
    known = list_versions(to, name)
    gone = [version for version in known if any(_gone(to, delta) for delta in named(version))]
    for version in gone:
        _artifacts(to, version.source).delete_artifacts()
        for tag in version.tags:  # MLflow keeps them of a version that is deleted
            to.client.delete_model_version_tag(name, version.version, tag)
        to.client.delete_model_version(name, version.version)
    if len(gone) == len(known):
        to.client.delete_registered_model(name)


def _named(to: MlflowClientContext, version: "ModelVersion") -> Collection[str]:
    """The deltas that a version of a stream's model names, as its files say."""
    from mlflow.models import Model

    with TemporaryDirectory() as folder:
        _artifacts(to, version.source).download_artifacts("MLmodel", folder)
        named: Collection[str] = Model.load(Path(folder) / "MLmodel").flavors["python_function"]["config"]["deltas"]
        return named


def _artifacts(to: MlflowClientContext, place: str) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(place, tracking_uri=to.locations.mlflow)
