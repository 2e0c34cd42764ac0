"""Resumed training: every method ends bit for bit as if it had never been interrupted."""

import pytest
import torch

from continual.backbones.backbone import Backbone
from continual.deltas import METHODS, Delta
from continual.kinds import kind_of_delta
from continual.serialization import deserialize, serialize
from continual.training.objective import training_objective
from continual.training.state import TrainingState, from_tensors, to_tensors
from continual.training.training_run import TrainingResult, TrainingRun
from tasks import Budget
from tests.helpers.tiny_tasks import fresh_delta, prepared_rows


def trained(
    backbone: Backbone, start: Delta, *, epochs: int = 4, resume_from: TrainingState | None = None
) -> tuple[TrainingResult, list[bytes]]:
    checkpoints: list[bytes] = []
    objective = training_objective(
        backbone,
        kind_of_delta(start),
        prepared_rows(backbone, "mood", 12),
        validation=prepared_rows(backbone, "mood", 6, seed=1),
        budget=Budget(epochs=epochs, batch_size=4),
        metric="accuracy",
        seed=3,
    )
    run = TrainingRun(
        backbone,
        start,
        objective,
        learning_rate=1e-2,
        seed=3,
        on_state=lambda state: checkpoints.append(serialize(*to_tensors(state))),
        resume_from=resume_from,
    )
    return run.run(), checkpoints


@pytest.mark.parametrize("method", METHODS)
def test_resumed_training_ends_as_uninterrupted_training(bert: Backbone, method: str) -> None:
    start = fresh_delta(bert, method)
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
