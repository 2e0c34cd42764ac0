"""The champions of a stream's tasks as one MLflow model, which routes texts without a named task."""

import json
from hashlib import sha256
from typing import TYPE_CHECKING

from continual.settings import FALSE_ABSTENTION_RATE
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
from registry import StoredStream

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

# A version is made at the end only, not one after each task that repeats all earlier deltas.
ENDED = {"learned", "failed"}


def sync_stream_model(context: MlflowClientContext, stream: StoredStream, run: str) -> None:
    """Create a model version of the stream's champions once all its tasks have ended, and move the alias."""
    if not {position.state for position in stream.positions} <= ENDED:
        return
    tasks = {position.task for position in stream.positions}
    champions = context.registry.champions(stream.backbone)
    digests = {champion.delta: champion.digest for champion in champions if champion.task in tasks}
    name = stream_model(context, stream.name)
    aliases = {}
    if digests:
        ensure_model(context, name, ownership_tags(context, stream=stream.name))
        aliases = {CHAMPION: ensure_version(context, name, _version_spec(stream, digests, run=run))}
    set_aliases(context, name, aliases)


def stream_model(context: MlflowClientContext, stream: str) -> str:
    """Return the name of a stream's model: the stream's name, unless another model has it."""
    return available_model_name(
        context, stream, ownership_tags(context, stream=stream), mark=context.key("stream", stream)
    )


def _version_spec(stream: StoredStream, digests: dict[str, str], *, run: str) -> ModelVersionSpec:
    digest = sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    return ModelVersionSpec(
        identity_tags={"continual.digest": digest},
        extra_tags={"continual.backbone": stream.backbone, "continual.deltas": str(len(digests))},
        run=run,
        folder=f"model/{digest}",
        backbone=stream.backbone,
        config={
            "stream": stream.name,
            "deltas": digests,
            "router": "auto",
            "false_abstentions": FALSE_ABSTENTION_RATE,
        },
        signature=_signature(),
        example=EXAMPLE,
    )


def _signature() -> "ModelSignature":
    """Return the model's outputs; an input signature would exclude either frames or lists of texts."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType

    return ModelSignature(outputs=output_columns(text=AnyType(), label=AnyType()))
