"""Resumed training: every method ends bit for bit as if it had never been interrupted."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from continual.backbones.backbone import Backbone
from continual.deltas import METHODS, Delta
from continual.serialization import deserialize, serialize
from continual.training.state import TrainingState, from_tensors, to_tensors
from continual.training.training_run import TrainingResult
from tests.helpers.tiny_tasks import fresh_delta, mood_run


def trained(
    backbone: Backbone, start: Delta, *, epochs: int = 4, resume_from: TrainingState | None = None
) -> tuple[TrainingResult, list[bytes]]:
    checkpoints: list[bytes] = []
    run = replace(
        mood_run(backbone, start, epochs=epochs),
        on_state=lambda state: checkpoints.append(serialize(*to_tensors(state))),
        resume_from=resume_from,
    )
    return run.run(), checkpoints


WITH_BUDGET = ("ada_lora", {"rank": 3, "target_rank": 1.0, "interval": 2})  # training keeps more than its values


@pytest.mark.parametrize(("method", "settings"), [*((method, {}) for method in METHODS), WITH_BUDGET])
def test_resumed_training_ends_as_uninterrupted_training(bert: Backbone, method: str, settings: dict[str, Any]) -> None:
    start = fresh_delta(bert, method, **settings)
    whole, checkpoints = trained(bert, start)
    assert len(checkpoints) == 5
    for epoch, data in enumerate(checkpoints):
        torch.manual_seed(epoch)  # resumed training must not depend on the global state
        rest, later = trained(bert, start, resume_from=from_tensors(*deserialize(data, what="checkpoint")))
        assert rest.delta.digest == whole.delta.digest
        assert rest.curve == whole.curve
        assert len(later) == 4 - epoch, "what is done is not done again"
        assert [_tensors(checkpoint) for checkpoint in later] == [
            _tensors(checkpoint) for checkpoint in checkpoints[epoch + 1 :]
        ]


def _tensors(data: bytes) -> dict[str, bytes]:
    """Return the contents of a checkpoint but for its timings."""
    tensors, about = deserialize(data, what="checkpoint")
    values = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    return values | {"deltas": repr(about["deltas"]).encode()}
