"""A task's champion as a version of its model in MLflow, under the alias `champion`."""

from typing import TYPE_CHECKING

from continual.tracking.client import MlflowClientContext
from continual.tracking.registered_models import (
    CHAMPION,
    EXAMPLE,
    ModelVersionSpec,
    available_model_name,
    ensure_model,
    ensure_version,
    output_columns,
    ownership_tags,
    set_aliases,
)
from registry import OutboxMessage, StoredDelta, TaskRecord, delete_sent
from tasks import KIND_SCHEMAS

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

DIGITS = 12  # digits of a backbone's fingerprint in the alias of its champion


def sync_champion(context: MlflowClientContext, pending: OutboxMessage) -> None:
    """Create the missing model versions of a task's champions, move the aliases, and delete the message.

    Raises:
        DependencyPendingError: A champion has no run yet.
    """
    task = context.registry.task(pending.subject)
    champions = context.registry.serving(task.name)
    name = task_model(context, task.name)
    if champions:
        ensure_model(context, name, ownership_tags(context, task=task.name, kind=task.kind, metric=task.metric))
    aliases: dict[str, str] = {}
    for delta in champions:
        number = ensure_version(context, name, _version_spec(task, delta))
        aliases |= {f"{CHAMPION}-{delta.backbone[:DIGITS]}": number, CHAMPION: number}
    set_aliases(context, name, aliases)
    with context.registry.unit_of_work() as unit:
        delete_sent(unit, pending)


def task_model(context: MlflowClientContext, task: str) -> str:
    """Return the name of a task's model: the task's name, unless another model has it."""
    return available_model_name(context, task, ownership_tags(context, task=task), mark=context.name)


def _version_spec(task: TaskRecord, delta: StoredDelta) -> ModelVersionSpec:
    pair = isinstance(task.spec.get("text"), list)
    return ModelVersionSpec(
        identity_tags={"continual.delta": delta.name, "continual.digest": delta.values},
        extra_tags={"continual.backbone": delta.backbone, "continual.method": delta.method},
        run=delta.mlflow_run,
        folder="model",
        backbone=delta.backbone,
        config={"delta": delta.name, "digest": delta.values},
        signature=_signature(pair=pair, number=KIND_SCHEMAS[task.kind].targets == "numbers"),
        example=[EXAMPLE, EXAMPLE] if pair else EXAMPLE,
    )


def _signature(*, pair: bool, number: bool) -> "ModelSignature":
    """Return inputs and outputs; a text column without a name accepts a plain list of texts too."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import Array, DataType

    texts = Array(DataType.string) if pair else "string"
    text_column = ColSpec(texts, "text") if pair else ColSpec(texts)
    return ModelSignature(
        inputs=Schema([text_column]), outputs=output_columns(text=texts, label="double" if number else "string")
    )
