"""Joint training of several deltas: for every method, each ends as if it were trained alone."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import METHODS, Delta
from continual.errors import TrainingError
from continual.kinds import kind_of_delta
from continual.training.joint import train_jointly
from continual.training.objective import TrainingObjective, training_objective
from continual.training.training_run import TrainingResult, TrainingRun
from tasks import Budget
from tests.helpers.tiny_tasks import fresh_delta, perturbed_delta, prepared_rows

TASKS = ("animals", "mood", "place")


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def _without_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn dropout off: its masks depend on the batch that they are drawn for."""
    monkeypatch.setattr(Backbone, "checkpoint_dropout", lambda backbone: nullcontext())


def objective_of(
    backbone: Backbone, start: Delta, task: str, *, rows: int = 8, epochs: int = 2
) -> TrainingObjective[list[int]]:
    return training_objective(
        backbone,
        kind_of_delta(start),
        prepared_rows(backbone, task, rows),
        validation=prepared_rows(backbone, task, 4, seed=1),
        budget=Budget(epochs=epochs, batch_size=4),
        metric="accuracy",
        seed=0,
    )


def training_run(backbone: Backbone, start: Delta, task: str, **sizes: int) -> TrainingRun[list[int]]:
    return TrainingRun(backbone, start, objective_of(backbone, start, task, **sizes), learning_rate=1e-2, seed=0)


def together(trainings: dict[str, TrainingRun[list[int]]]) -> dict[str, TrainingResult | Exception]:
    return dict(train_jointly(trainings, seed=0))


def result_of(outcome: TrainingResult | Exception) -> TrainingResult:
    assert isinstance(outcome, TrainingResult)
    return outcome


def same(actual: Delta, expected: Delta) -> bool:
    pairs = zip(actual.tensors().values(), expected.tensors().values(), strict=True)
    return all(torch.allclose(first.float(), second.float(), rtol=1e-3, atol=1e-4) for first, second in pairs)


def test_each_delta_ends_as_when_trained_alone(bert: Backbone, method: str) -> None:
    """Two deltas of one method share their matrix products; a third of another method is beside them."""
    if method == "diff_pruning":
        pytest.skip("its gates are drawn at every step, in the order of the steps")
    starts = {"animals": fresh_delta(bert, method, task="animals"), "mood": fresh_delta(bert, method, seed=1)}
    starts["place"] = fresh_delta(bert, "lora", task="place", rank=3)
    outcomes = together({task: training_run(bert, start, task) for task, start in starts.items()})
    for task, start in starts.items():
        expected = TrainingRun(bert, start, objective_of(bert, start, task), learning_rate=1e-2, seed=0).run()
        outcome = result_of(outcomes[task])
        first, last = ([result.curve[epoch].loss for result in (outcome, expected)] for epoch in (1, 2))
        assert first[0] == pytest.approx(first[1], rel=1e-3)
        assert last[0] == pytest.approx(last[1], rel=2e-2), "AdamW's first steps follow the sign of what is nearly zero"


def test_each_family_trains_jointly_as_alone(backbone: Backbone) -> None:
    starts = {
        "animals": fresh_delta(backbone, "lora", task="animals"),
        "mood": fresh_delta(backbone, "prefix", length=3),
        "place": fresh_delta(backbone, "prompt", task="place", length=2),
    }
    outcomes = together({task: training_run(backbone, start, task, epochs=1) for task, start in starts.items()})
    for task, start in starts.items():
        alone = TrainingRun(
            backbone, start, objective_of(backbone, start, task, epochs=1), learning_rate=1e-2, seed=0
        ).run()
        assert result_of(outcomes[task]).curve[-1].loss == pytest.approx(alone.curve[-1].loss, rel=1e-3)


def test_texts_of_all_tasks_share_a_pass(bert: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    real = Backbone.hidden_states

    def counted(backbone: Backbone, batch: dict[str, Tensor]) -> Tensor:
        if torch.is_grad_enabled():
            passes.append(len(batch["input_ids"]))
        return real(backbone, batch)

    monkeypatch.setattr(Backbone, "hidden_states", counted)
    methods = {"animals": "lora", "mood": "adapter", "place": "prefix"}
    together(
        {task: training_run(bert, fresh_delta(bert, name, task=task), task, epochs=1) for task, name in methods.items()}
    )
    assert passes == [12, 12], "two steps of four rows of each"


def test_a_task_with_fewer_epochs_ends_early_and_stays(bert: Backbone) -> None:
    short, long = fresh_delta(bert, "lora", task="animals"), fresh_delta(bert, "lora", seed=1)
    trainings = {
        "long": training_run(bert, long, "mood", epochs=4),
        "short": training_run(bert, short, "animals", rows=4, epochs=1),
    }
    running = train_jointly(trainings, seed=0)
    name, first = next(running)
    assert name == "short"
    assert isinstance(first, TrainingResult)
    before = {key: value.clone() for key, value in first.delta.tensors().items()}
    assert [name for name, _ in running] == ["long"]
    assert all(torch.equal(value, before[key]) for key, value in first.delta.tensors().items())


def test_a_task_whose_loss_is_nan_fails_alone(bert: Backbone) -> None:
    good, bad = (
        fresh_delta(bert, "lora", task="animals"),
        perturbed_delta(bert, "lora").map(lambda tensor: tensor * torch.inf),
    )
    outcomes = together({"good": training_run(bert, good, "animals"), "bad": training_run(bert, bad, "mood")})
    assert isinstance(outcomes["bad"], TrainingError)
    expected = TrainingRun(bert, good, objective_of(bert, good, "animals"), learning_rate=1e-2, seed=0).run()
    assert same(result_of(outcomes["good"]).delta, expected.delta)


def test_a_task_without_epochs_ends_at_once(bert: Backbone) -> None:
    start = fresh_delta(bert, "lora", task="animals")
    outcomes = together({"none": training_run(bert, start, "animals", epochs=0)})
    assert same(result_of(outcomes["none"]).delta, start)
