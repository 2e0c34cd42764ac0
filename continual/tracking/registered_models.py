"""MLflow's registered models: their versions reference deltas of the registry and hold no values."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from continual.settings import DISTRIBUTION
from continual.tracking.client import ESCAPE, DependencyPendingError, MlflowClientContext, escape_name
from registry import redact

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature
    from mlflow.types import Schema

CHAMPION = "champion"  # the alias; where several backbones have champions, the newest has it
MODEL_CODE = Path(__file__).with_name("served.py")
REQUIRED_COLUMNS = ("routed", "abstained")  # columns of a prediction that are never null
EXAMPLE = "A text to be answered."  # the input example; never a user's text


@dataclass(frozen=True, kw_only=True)
class ModelVersionSpec:
    """The contents of a model version.

    Attributes:
        identity_tags: The tags that identify the version.
        extra_tags: Further tags.
        run: The id of the MLflow run whose artifacts hold the version's files.
        folder: The folder of the files in that run's artifacts.
        backbone: The fingerprint of the backbone.
        config: The names and digests of the deltas, and settings of the router.
        signature: The model's inputs and outputs.
        example: A value of the column `text`.
    """

    identity_tags: Mapping[str, str]
    extra_tags: Mapping[str, str]
    run: str | None
    folder: str
    backbone: str
    config: Mapping[str, Any]
    signature: "ModelSignature"
    example: Any


def ownership_tags(context: MlflowClientContext, **subject: str) -> dict[str, str]:
    """Return the tags that identify a model's registry and its task or stream there."""
    return {f"continual.{tag}": value for tag, value in ({"registry": context.name} | subject).items()}


def available_model_name(context: MlflowClientContext, name: str, ownership: Mapping[str, str], *, mark: str) -> str:
    """Return a model's name: the escaped `name`, with a suffix where another owner's model has it.

    Args:
        context: The connection to MLflow.
        name: The name of the task or stream.
        ownership: The ownership tags that the model must have.
        mark: A key whose first digits are the suffix.
    """
    escaped = escape_name(name)
    model = find_model(context, escaped)
    return escaped if model is None or ownership.items() <= model.tags.items() else f"{escaped}{ESCAPE * 2}{mark[:8]}"


def find_model(context: MlflowClientContext, name: str) -> Any:
    """Return the registered model of this name, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return context.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def ensure_model(context: MlflowClientContext, name: str, tags: Mapping[str, str]) -> None:
    """Create a registered model of this name with these tags, unless it exists."""
    if find_model(context, name) is None:
        context.client.create_registered_model(name, tags=dict(tags))


def list_versions(context: MlflowClientContext, name: str) -> "Sequence[ModelVersion]":
    """Return all versions of a model."""
    versions: Sequence[ModelVersion] = context.client.search_model_versions(f"name = '{name}'", max_results=10_000)
    return versions


def ensure_version(context: MlflowClientContext, name: str, spec: ModelVersionSpec) -> str:
    """Return the number of the version with these identity tags; create it where it is missing.

    Raises:
        DependencyPendingError: The run that is to hold the version's files does not exist yet.
    """
    for existing in list_versions(context, name):
        if spec.identity_tags.items() <= existing.tags.items():
            return str(existing.version)
    run = context.active_run(spec.run)
    if run is None:
        raise DependencyPendingError(f"the delta or stream of model {name} has no run yet")
    with TemporaryDirectory() as folder:
        _save(context, Path(folder) / "model", spec)
        context.client.log_artifacts(run.info.run_id, str(Path(folder) / "model"), spec.folder)
    tags, source = {**spec.identity_tags, **spec.extra_tags}, f"{run.info.artifact_uri}/{spec.folder}"
    created = context.client.create_model_version(name, source, run.info.run_id, tags=tags, await_creation_for=60)
    return str(created.version)


def set_aliases(context: MlflowClientContext, name: str, aliases: Mapping[str, str]) -> None:
    """Point the champion aliases at these versions, and delete those that are not listed.

    Aliases of other names are left alone.

    Args:
        context: The connection to MLflow.
        name: The name of the model.
        aliases: The numbers of versions, by alias.
    """
    model = find_model(context, name)
    current = {alias: str(version) for alias, version in model.aliases.items()} if model else {}
    for alias, number in aliases.items():
        if current.get(alias) != number:
            context.client.set_registered_model_alias(name, alias, number)
    for alias in current.keys() - aliases.keys():
        if alias == CHAMPION or alias.startswith(f"{CHAMPION}-"):
            context.client.delete_registered_model_alias(name, alias)


def output_columns(*, text: Any, label: Any) -> "Schema":
    """Return the columns of a prediction, with these types of the text and the label."""
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import AnyType

    columns = {
        "text": text,
        "task": "string",
        "label": label,
        "score": "double",
        "routed": "boolean",
        "confidence": "double",
        "abstained": "boolean",
        "delta": "string",
        "possible": AnyType(),
        "error": "string",
    }
    return Schema([ColSpec(kind, name, required=name in REQUIRED_COLUMNS) for name, kind in columns.items()])


def _save(context: MlflowClientContext, folder: Path, spec: ModelVersionSpec) -> None:
    """Write the model's files: its code and the location of the deltas; no values, pickles or secrets."""
    import pandas as pd
    from mlflow import pyfunc

    locations = {
        "backbone": context.registry.backbone(spec.backbone).name,
        "fingerprint": spec.backbone,
        "registry": redact(context.locations.registry),
        "blobs": redact(context.locations.blobs),
        "device": "auto",
        "dtype": "auto",
    }
    pyfunc.save_model(
        folder,
        python_model=MODEL_CODE,
        model_config={**spec.config, **locations},
        signature=spec.signature,
        input_example=pd.DataFrame({"text": [spec.example]}),
        pip_requirements=[f"{DISTRIBUTION}=={importlib.metadata.version(DISTRIBUTION)}"],
    )
