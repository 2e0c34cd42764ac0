"""What serves the tasks of a stream as one model in MLflow, which answers whether or not a text's task is named."""

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
    output_columns,
    ownership_tags,
    set_aliases,
    ensure_version,
)
from registry import StoredStream

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

ENDED = {"learned", "failed"}  # a version for each task on the way would name all that came before, each time


def sync_stream_model(to: MlflowClientContext, stream: StoredStream, run: str) -> None:
    """Makes the deltas that serve a stream's tasks a version, once nothing is left to learn, and moves the alias."""
    if not {position.state for position in stream.positions} <= ENDED:
        return
    tasks = {position.task for position in stream.positions}
    champions = to.registry.champions(stream.backbone)
    serving = {champion.delta: champion.digest for champion in champions if champion.task in tasks}
    name = stream_model(to, stream.name)
    wanted = {}
    if serving:
        ensure_model(to, name, ownership_tags(to, stream=stream.name))
        wanted = {CHAMPION: ensure_version(to, name, _reference(stream, serving, run=run))}
    set_aliases(to, name, wanted)


def stream_model(to: MlflowClientContext, stream: str) -> str:
    """What a stream's model is called: as the stream, unless another model is, such as that of a task."""
    return available_model_name(to, stream, ownership_tags(to, stream=stream), mark=to.key("stream", stream))


def _reference(stream: StoredStream, serving: dict[str, str], *, run: str) -> ModelVersionSpec:
    digest = sha256(json.dumps(serving, sort_keys=True).encode()).hexdigest()
    return ModelVersionSpec(
        identity_tags={"continual.digest": digest},
        extra_tags={"continual.backbone": stream.backbone, "continual.deltas": str(len(serving))},
        run=run,
        folder=f"model/{digest}",
        backbone=stream.backbone,
        config={
            "stream": stream.name,
            "deltas": serving,
            "router": "auto",
            "false_abstentions": FALSE_ABSTENTION_RATE,
        },
        signature=_signature(),
        example=EXAMPLE,
    )


def _signature() -> "ModelSignature":
    """What comes out. Of what goes in nothing is said: MLflow would take a frame, or a list, but not both."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType

    return ModelSignature(outputs=output_columns(text=AnyType(), label=AnyType()))
