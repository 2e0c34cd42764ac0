"""The champion of a task as a version of a model in MLflow, under the alias `champion`."""

from typing import TYPE_CHECKING

from continual.tracking.client import MlflowClientContext
from continual.tracking.registered_models import (
    CHAMPION,
    EXAMPLE,
    ModelVersionSpec,
    available_model_name,
    ensure_model,
    output_columns,
    ownership_tags,
    set_aliases,
    ensure_version,
)
from registry import OutboxMessage, StoredDelta, TaskRecord, delete_sent

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

DIGITS = 12  # of a fingerprint, in the alias of the champion on one backbone


def sync_champion(to: MlflowClientContext, pending: OutboxMessage) -> None:
    """Makes what serves a task model versions, and moves the aliases to them.

    Raises: NotYet, where a delta that serves has no run.
    """
    task = to.registry.task(pending.subject)
    serving = to.registry.serving(task.name)
    name = task_model(to, task.name)
    if serving:
        ensure_model(to, name, ownership_tags(to, task=task.name, kind=task.kind, metric=task.metric))
    wanted: dict[str, str] = {}
    for delta in serving:
        number = ensure_version(to, name, _reference(task, delta))
        wanted |= {f"{CHAMPION}-{delta.backbone[:DIGITS]}": number, CHAMPION: number}
    set_aliases(to, name, wanted)
    with to.registry.unit_of_work() as unit:
        delete_sent(unit, pending)


def task_model(to: MlflowClientContext, task: str) -> str:
    """What a task's model is called: as the task, unless another model is."""
    return available_model_name(to, task, ownership_tags(to, task=task), mark=to.name)


def _reference(task: TaskRecord, delta: StoredDelta) -> ModelVersionSpec:
    pair = isinstance(task.spec.get("text"), list)
    return ModelVersionSpec(
        identity_tags={"continual.delta": delta.name, "continual.digest": delta.values},
        extra_tags={"continual.backbone": delta.backbone, "continual.method": delta.method},
        run=delta.mlflow_run,
        folder="model",
        backbone=delta.backbone,
        config={"delta": delta.name, "digest": delta.values},
        signature=_signature(pair=pair, number=task.kind == "regression"),
        example=[EXAMPLE, EXAMPLE] if pair else EXAMPLE,
    )


def _signature(*, pair: bool, number: bool) -> "ModelSignature":
    """What goes in and comes out. A text's column has no name, so that a list of texts is taken too."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import Array, DataType

    texts = Array(DataType.string) if pair else "string"
    given = ColSpec(texts, "text") if pair else ColSpec(texts)
    return ModelSignature(
        inputs=Schema([given]), outputs=output_columns(text=texts, label="double" if number else "string")
    )
