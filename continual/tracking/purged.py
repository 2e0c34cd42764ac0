"""What a person had removed from the registry is removed from MLflow too."""

from typing import TYPE_CHECKING

from continual.tracking.champions import find_model, model_name, versions
from continual.tracking.client import Projection
from registry import Pending, is_purged, settle

if TYPE_CHECKING:
    from mlflow.entities import Run


def tell_purged(to: Projection, pending: Pending) -> None:
    """Removes the runs and the model versions of a task's purged deltas, with their artifacts.

    They are those that the message names, and those that are found by the task, which the registry may not know of.
    """
    task = pending.subject.partition("@")[0]
    named = [run for run in map(to.run, pending.about.get("runs", [])) if run]
    all_of_task = to.runs("task_key", to.key("task", task), deleted=True)
    found = [run for run in all_of_task if _gone(to, run.data.tags["continual.delta"])]
    for run in {run.info.run_id: run for run in (*named, *found)}.values():
        _remove(to, run)
    _remove_versions(to, model_name(to, task))
    with to.registry.unit() as unit:
        settle(unit, pending)


def _gone(to: Projection, delta: str) -> bool:
    with to.registry.unit() as unit:
        return is_purged(unit, delta)


def _remove(to: Projection, run: "Run") -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    get_artifact_repository(run.info.artifact_uri, tracking_uri=to.places.mlflow).delete_artifacts()
    if run.info.lifecycle_stage == "active":
        to.client.delete_run(run.info.run_id)
    store = to.client._tracking_client.store
    if hasattr(store, "_hard_delete_run"):  # as `mlflow gc` does; behind a server, that command removes it for good
        store._hard_delete_run(run.info.run_id)


def _remove_versions(to: Projection, name: str) -> None:
    model = find_model(to, name)
    if model is None:
        return
    known = versions(to, name)
    gone = [version for version in known if _gone(to, version.tags["continual.delta"])]
    if len(gone) == len(known):
        to.client.delete_registered_model(name)
        return
    for version in gone:
        for tag in version.tags:  # MLflow keeps them of a version that is deleted
            to.client.delete_model_version_tag(name, version.version, tag)
        to.client.delete_model_version(name, version.version)
