"""Registered models in MLflow: each version a reference to deltas of the registry, with no values of its own."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from continual.tracking.client import ESCAPE, DependencyPendingError, MlflowClientContext, escape_name
from registry import redact

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature
    from mlflow.types import Schema

CHAMPION = "champion"  # the alias; of several backbones' champions it is the newest's
CODE = Path(__file__).with_name("served.py")
ALWAYS = ("routed", "abstained")  # columns of an answer that are never null, whatever the text
EXAMPLE = "A text to be answered."  # never a user's own


@dataclass(frozen=True, kw_only=True)
class ModelVersionSpec:
    """What a version of a model is of.

    key: tags by which it is found again · about: others that it shows · run, folder: where its files are to lie among
    those of a run of MLflow's · config: which deltas of which backbone · example: a column `text`.
    """

    identity_tags: Mapping[str, str]
    extra_tags: Mapping[str, str]
    run: str | None
    folder: str
    backbone: str
    config: Mapping[str, Any]
    signature: "ModelSignature"
    example: Any


def ownership_tags(to: MlflowClientContext, **subject: str) -> dict[str, str]:
    """The tags that say whose a model is: this registry's, and there that of a task or a stream."""
    return {f"continual.{tag}": value for tag, value in ({"registry": to.name} | subject).items()}


def available_model_name(to: MlflowClientContext, name: str, own: Mapping[str, str], *, mark: str) -> str:
    """What a model is called: as what it is of, or marked where another model is called so, here or elsewhere."""
    wanted = escape_name(name)
    model = find_model(to, wanted)
    return wanted if model is None or own.items() <= model.tags.items() else f"{wanted}{ESCAPE * 2}{mark[:8]}"


def find_model(to: MlflowClientContext, name: str) -> Any:
    """The model of that name, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return to.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def ensure_model(to: MlflowClientContext, name: str, tags: Mapping[str, str]) -> None:
    """Has a model of that name, with these tags where it is new."""
    if find_model(to, name) is None:
        to.client.create_registered_model(name, tags=dict(tags))


def list_versions(to: MlflowClientContext, name: str) -> "Sequence[ModelVersion]":
    """All versions of a model."""
    found: Sequence[ModelVersion] = to.client.search_model_versions(f"name = '{name}'", max_results=10_000)
    return found


def ensure_version(to: MlflowClientContext, name: str, wanted: ModelVersionSpec) -> str:
    """The number of a version, which is made where there is none. Raises: NotYet, where its run is not there."""
    for known in list_versions(to, name):
        if wanted.identity_tags.items() <= known.tags.items():
            return str(known.version)
    run = to.active_run(wanted.run)
    if run is None:
        raise DependencyPendingError(f"what model {name} is of has no run yet")
    with TemporaryDirectory() as folder:
        _save(to, Path(folder) / "model", wanted)
        to.client.log_artifacts(run.info.run_id, str(Path(folder) / "model"), wanted.folder)
    tags, source = {**wanted.identity_tags, **wanted.extra_tags}, f"{run.info.artifact_uri}/{wanted.folder}"
    made = to.client.create_model_version(name, source, run.info.run_id, tags=tags, await_creation_for=60)
    return str(made.version)


def set_aliases(to: MlflowClientContext, name: str, wanted: Mapping[str, str]) -> None:
    """Points our aliases at these versions and takes them away where nothing serves; others are left alone."""
    model = find_model(to, name)
    known = {alias: str(version) for alias, version in model.aliases.items()} if model else {}
    for alias, number in wanted.items():
        if known.get(alias) != number:
            to.client.set_registered_model_alias(name, alias, number)
    for alias in known.keys() - wanted.keys():
        if alias == CHAMPION or alias.startswith(f"{CHAMPION}-"):
            to.client.delete_registered_model_alias(name, alias)


def output_columns(*, text: Any, label: Any) -> "Schema":
    """The columns of an answer: those of `Prediction`, with these types of a text and of a label."""
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
    return Schema([ColSpec(kind, name, required=name in ALWAYS) for name, kind in columns.items()])


def _save(to: MlflowClientContext, folder: Path, wanted: ModelVersionSpec) -> None:
    """Write the model: its code, and where to find the deltas; no values, nothing pickled, no secret."""
    import pandas as pd
    from mlflow import pyfunc

    places = {
        "backbone": to.registry.backbone(wanted.backbone).name,
        "fingerprint": wanted.backbone,
        "registry": redact(to.locations.registry),
        "blobs": redact(to.locations.blobs),
        "device": "auto",
        "dtype": "auto",
    }
    pyfunc.save_model(
        folder,
        python_model=CODE,
        model_config={**wanted.config, **places},
        signature=wanted.signature,
        input_example=pd.DataFrame({"text": [wanted.example]}),
        pip_requirements=[f"continual=={importlib.metadata.version('continual')}"],
    )
