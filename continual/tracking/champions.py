"""The champion of a task as a version of a model in MLflow, under the alias `champion`."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from continual.tracking.client import NotYet, Projection
from continual.tracking.names import ESCAPE, plain
from registry import Pending, StoredDelta, TaskRecord, settle, shown

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

CHAMPION = "champion"  # the alias; of several backbones' champions it is the newest's
CODE = Path(__file__).with_name("served.py")
EXAMPLE = "A text to be answered."  # never a user's own
DIGITS = 12  # of a fingerprint, in the alias of the champion on one backbone


def tell_champion(to: Projection, pending: Pending) -> None:
    """Makes what serves a task model versions, and moves the aliases to them.

    Raises: NotYet, where a delta that serves has no run.
    """
    task = to.registry.task(pending.subject)
    serving = to.registry.serving(task.name)
    name = model_name(to, task.name)
    if serving:
        _make_model(to, name, task)
    wanted: dict[str, str] = {}
    for delta in serving:
        version = _version(to, name, task, delta)
        wanted |= {f"{CHAMPION}-{delta.backbone[:DIGITS]}": version, CHAMPION: version}
    _move(to, name, wanted)
    with to.registry.unit() as unit:
        settle(unit, pending)


def model_name(to: Projection, task: str) -> str:
    """What a task's model is called: as the task, unless a model that is not this registry's is called so."""
    name = plain(task)
    model = find_model(to, name)
    return (
        name if model is None or model.tags.get("continual.registry") == to.name else f"{name}{ESCAPE * 2}{to.name[:8]}"
    )


def find_model(to: Projection, name: str) -> Any:
    """The model of that name, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return to.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def versions(to: Projection, name: str) -> "Sequence[ModelVersion]":
    """All versions of a model."""
    found: Sequence[ModelVersion] = to.client.search_model_versions(f"name = '{name}'", max_results=10_000)
    return found


def _make_model(to: Projection, name: str, task: TaskRecord) -> None:
    if find_model(to, name) is None:
        own = {"registry": to.name, "task": task.name, "kind": task.kind, "metric": task.metric}
        to.client.create_registered_model(name, tags={f"continual.{tag}": value for tag, value in own.items()})


def _version(to: Projection, name: str, task: TaskRecord, delta: StoredDelta) -> str:
    """The version of a delta, made where there is none."""
    tags = {"continual.delta": delta.name, "continual.digest": delta.values}
    for known in versions(to, name):
        if tags.items() <= known.tags.items():
            return str(known.version)
    run = to.run(delta.mlflow_run)
    if run is None:
        raise NotYet(f"delta {delta.name} has no run yet")
    with TemporaryDirectory() as folder:
        _save(to, Path(folder) / "model", task, delta)
        to.client.log_artifacts(run.info.run_id, str(Path(folder) / "model"), "model")
    own = tags | {"continual.backbone": delta.backbone, "continual.method": delta.method}
    source = f"{run.info.artifact_uri}/model"
    made = to.client.create_model_version(name, source, run.info.run_id, tags=own, await_creation_for=60)
    return str(made.version)


def _save(to: Projection, folder: Path, task: TaskRecord, delta: StoredDelta) -> None:
    """Write the model: its code, and where to find the delta; no values, nothing pickled, no secret."""
    import pandas as pd
    from mlflow import pyfunc

    pair = isinstance(task.spec.get("text"), list)
    pyfunc.save_model(
        folder,
        python_model=CODE,
        model_config={
            "delta": delta.name,
            "digest": delta.values,
            "backbone": to.registry.backbone(delta.backbone).name,
            "fingerprint": delta.backbone,
            "registry": shown(to.places.registry),
            "blobs": shown(to.places.blobs),
            "device": "auto",
            "dtype": "auto",
        },
        signature=_signature(pair=pair, number=task.kind == "regression"),
        input_example=pd.DataFrame({"text": [[EXAMPLE, EXAMPLE] if pair else EXAMPLE]}),
        pip_requirements=[f"continual=={importlib.metadata.version('continual')}"],
    )


def _signature(*, pair: bool, number: bool) -> "ModelSignature":
    """What goes in and comes out. A text's column has no name, so that a list of texts is taken too."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import Array, DataType

    text = ColSpec(Array(DataType.string), "text") if pair else ColSpec("string")
    given = Array(DataType.string) if pair else "string"
    answers = [
        ColSpec(given, "text"),
        ColSpec("string", "task"),
        ColSpec("double" if number else "string", "label"),
        ColSpec("double", "score", required=False),
        ColSpec("boolean", "routed"),
        ColSpec("double", "confidence", required=False),
        ColSpec("boolean", "abstained"),
        ColSpec("string", "delta"),
    ]
    return ModelSignature(inputs=Schema([text]), outputs=Schema(answers))


def _move(to: Projection, name: str, wanted: dict[str, str]) -> None:
    """Points our aliases at these versions and takes them away where nothing serves; others are left alone."""
    model = find_model(to, name)
    known = {alias: str(version) for alias, version in model.aliases.items()} if model else {}
    for alias, version in wanted.items():
        if known.get(alias) != version:
            to.client.set_registered_model_alias(name, alias, version)
    for alias in known.keys() - wanted.keys():
        if alias == CHAMPION or alias.startswith(f"{CHAMPION}-"):
            to.client.delete_registered_model_alias(name, alias)
