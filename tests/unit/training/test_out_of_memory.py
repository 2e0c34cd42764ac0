"""Out-of-memory handling: split batches have the gradients of the whole batch."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import Delta
from continual.errors import TrainingError
from continual.kinds import kind_metadata, kind_of_delta
from continual.kinds.classification import Classification
from continual.kinds.generation import Generation
from continual.training.joint import train_jointly
from continual.training.objective import TrainingObjective, training_objective
from continual.training.training_run import TrainingResult, TrainingRun
from tasks import Budget, GenerationTarget, LabelledTexts
from tests.helpers.tiny_tasks import fresh_delta, prepared_rows


@pytest.fixture(autouse=True)
def _without_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn dropout off: its masks depend on the batch that they are drawn for."""
    monkeypatch.setattr(Backbone, "checkpoint_dropout", lambda backbone: nullcontext())


def classification(backbone: Backbone, start: Delta, *, batch_size: int) -> TrainingObjective[list[int]]:
    return training_objective(
        backbone,
        kind_of_delta(start),
        prepared_rows(backbone, "mood", 10),
        validation=prepared_rows(backbone, "mood", 4, seed=1),
        budget=Budget(epochs=2, batch_size=batch_size),
        metric="accuracy",
        seed=0,
    )


def small_memory(monkeypatch: pytest.MonkeyPatch, kind: type[Any], method: str, *, rows: int) -> list[int]:
    """Refuse training batches of more rows than this while the block runs; the sizes of those that fit."""
    real, fitted = getattr(kind, method), []

    def loss(*args: Any) -> Tensor:
        if not torch.is_grad_enabled():  # the validation rows
            evaluated: Tensor = real(*args)
            return evaluated
        if len(args[-1]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        fitted.append(len(args[-1]))
        value: Tensor = real(*args)
        return value

    monkeypatch.setattr(kind, method, loss)
    return fitted


def losses(trained: TrainingResult) -> list[float]:
    return [epoch.loss for epoch in trained.curve if epoch.loss is not None]


def test_a_split_batch_is_the_same_step(bert: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    start = fresh_delta(bert, "adapter")
    objective = classification(bert, start, batch_size=7)
    whole = TrainingRun(bert, start, objective, learning_rate=1e-2, seed=0).run()
    fitted = small_memory(monkeypatch, Classification, "head_loss", rows=2)
    parts = TrainingRun(bert, start, objective, learning_rate=1e-2, seed=0).run()
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-3)
    assert set(fitted) == {1, 2}


def test_parts_are_weighted_by_their_tokens(monkeypatch: pytest.MonkeyPatch, writer: Backbone) -> None:
    kind = Generation(8)
    texts = ("purr meow", "wave", "the sea of honey", "one")
    expected = tuple(
        GenerationTarget(text, (text,)) for text in ("cat", "tide sail coral wave tide", "a", "of the and with one")
    )
    rows = kind.prepare(writer, LabelledTexts(texts, expected), max_length=16)
    start = replace(fresh_delta(writer, "lora"), head=None, kind=kind_metadata(kind))
    objective = training_objective(
        writer, kind, rows, validation=rows, budget=Budget(epochs=1, batch_size=4), metric="exact_match", seed=0
    )
    whole = TrainingRun(writer, start, objective, learning_rate=1e-2, seed=0).run()
    small_memory(monkeypatch, Generation, "loss", rows=1)
    assert losses(TrainingRun(writer, start, objective, learning_rate=1e-2, seed=0).run()) == pytest.approx(
        losses(whole), rel=1e-3
    )


def test_a_single_row_that_does_not_fit_is_an_error(bert: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    start = fresh_delta(bert, "lora")
    small_memory(monkeypatch, Classification, "head_loss", rows=0)
    with pytest.raises(TrainingError, match=r"memory does not hold a training step of one row.*Tried to allocate 20"):
        TrainingRun(bert, start, classification(bert, start, batch_size=4), learning_rate=1e-2, seed=0).run()


def test_tasks_that_do_not_fit_jointly_are_trained_alone(bert: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = {"first": fresh_delta(bert, "lora"), "second": fresh_delta(bert, "lora", seed=1)}
    lessons = {name: classification(bert, start, batch_size=4) for name, start in starts.items()}
    alone = {name: TrainingRun(bert, starts[name], lessons[name], learning_rate=1e-2, seed=0).run() for name in starts}

    def too_much(*args: Any) -> list[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("continual.training.joint._losses", too_much)
    runs = {name: TrainingRun(bert, starts[name], lessons[name], learning_rate=1e-2, seed=0) for name in starts}
    for name, outcome in train_jointly(runs, seed=0):
        assert isinstance(outcome, TrainingResult)
        assert losses(outcome) == pytest.approx(losses(alone[name]), rel=1e-3)
