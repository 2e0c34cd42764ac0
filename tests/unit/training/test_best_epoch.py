"""The best epoch: the highest validation score, and of equal scores the lowest validation loss."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from continual.backbones.backbone import Backbone
from continual.serialization import deserialize, serialize
from continual.training.objective import Evaluation
from continual.training.state import from_tensors, to_tensors
from continual.training.training_run import TrainingRun
from tests.helpers.tiny_tasks import fresh_delta, mood_run


def run_with(backbone: Backbone, evaluations: Sequence[tuple[float, float]]) -> TrainingRun[list[int]]:
    """Return a training whose epochs have these validation scores and losses, the start first."""
    run = mood_run(backbone, fresh_delta(backbone, "bitfit"), epochs=len(evaluations) - 1)
    results = iter(evaluations)
    return replace(run, objective=replace(run.objective, evaluate=lambda delta: Evaluation(*next(results))))


@pytest.mark.parametrize(
    ("evaluations", "best"),
    [
        ([(0.9, 0.5), (0.9, 0.4), (0.9, 0.3)], 2),
        ([(0.9, 0.5), (0.9, 0.4), (0.9, 0.45)], 1),
        ([(0.9, 0.5), (0.95, 0.9), (0.9, 0.1)], 1),
        ([(0.9, 0.3), (0.9, 0.3), (0.9, 0.4)], 0),
        ([(0.9, 0.3), (0.9, math.nan), (0.8, 0.1)], 0),
        ([(0.9, math.inf), (0.9, math.nan), (0.9, 2.0)], 2),
    ],
)
def test_equal_scores_are_told_apart_by_the_loss(
    bert: Backbone, evaluations: list[tuple[float, float]], best: int
) -> None:
    result = run_with(bert, evaluations).run()
    assert result.best.number == best
    assert result.score == evaluations[best][0]
    assert [epoch.score for epoch in result.curve] == [score for score, _ in evaluations]


def test_a_resumed_training_knows_the_losses_of_the_epochs_before(bert: Backbone) -> None:
    evaluations = [(0.9, 0.5), (0.9, 0.2), (0.9, 0.3)]
    checkpoints: list[bytes] = []
    run = run_with(bert, evaluations)
    whole = replace(run, on_state=lambda state: checkpoints.append(serialize(*to_tensors(state)))).run()
    state = from_tensors(*deserialize(checkpoints[1], what="checkpoint"))
    resumed = replace(run_with(bert, [(0.9, 0.3), (0.9, 0.5), (0.0, 0.0)]), resume_from=state).run()
    assert (resumed.best, resumed.curve, resumed.delta.digest) == (whole.best, whole.curve, whole.delta.digest)
    assert whole.best.number == 1
