"""Activation checkpointing: the same gradients with less memory, and an unchanged backbone afterwards."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.backbones.layers import activation_checkpointing
from continual.deltas import Delta, attached
from continual.kinds import kind_of_delta
from continual.kinds.classification import Classification
from continual.kinds.language_model import token_nll
from continual.streams.preflight import recipe_digest
from continual.training.joint import train_jointly
from continual.training.objective import training_objective
from continual.training.steps import training_mode
from continual.training.training_run import TrainingResult, TrainingRun
from tasks import Budget, Stream, TaskSpec, load_stream
from tests.helpers.tiny_tasks import fresh_delta, labels_of, perturbed_delta, prepared_rows, write_task

METHODS = ("lora", "adapter", "prefix", "prompt", "dora", "layer_norm")


def gradients(backbone: Backbone, delta: Delta, *, again: bool) -> tuple[list[Tensor], int]:
    """Return a batch's gradients with dropout, and the bytes saved for the backward pass beside the layers' inputs."""
    learned, saved_bytes = delta.trainable(backbone.device), 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal saved_bytes
        saved_bytes += tensor.nbytes
        return tensor

    rows = prepared_rows(backbone, "mood", 6)
    torch.manual_seed(1)
    with attached(backbone, learned), training_mode(backbone, recompute=again):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = Classification(labels_of("mood")).loss(backbone, learned, rows, range(6))
        torch.autograd.backward(loss)
    return [tensor.grad for tensor in learned.tensors().values() if tensor.grad is not None], saved_bytes


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_the_same_with_less_memory(backbone: Backbone, method: str) -> None:
    delta = perturbed_delta(backbone, method)
    (plain, all_kept), (again, saved_bytes) = (gradients(backbone, delta, again=again) for again in (False, True))
    assert len(plain) == len(again)
    assert all(torch.allclose(*pair, rtol=1e-6, atol=1e-6) for pair in zip(plain, again, strict=True))
    longest = max(prepared_rows(backbone, "mood", 6).tokens.lengths) + delta.settings.added_tokens
    entering = 6 * longest * backbone.model.config.hidden_size * 4 * backbone.num_layers
    assert saved_bytes + entering < 0.6 * all_kept


def test_gradients_of_a_generation_task_are_the_same(writer: Backbone) -> None:
    """Both stacks of an encoder-decoder are recomputed."""
    delta = perturbed_delta(writer, "lora")

    def result(again: bool) -> list[Tensor]:
        learned = delta.trainable(writer.device)
        torch.manual_seed(1)
        with attached(writer, learned), training_mode(writer, recompute=again):
            torch.autograd.backward(token_nll(writer, [(5, 6, 7), (8, 9)], [(10, 11), (12,)])[0].sum())
        return [value.grad for value in learned.values.values() if value.grad is not None]

    plain, again = result(False), result(True)
    assert plain
    assert all(torch.allclose(*pair, rtol=1e-6, atol=1e-6) for pair in zip(plain, again, strict=True))


def test_the_backbone_is_as_it_was(backbone: Backbone) -> None:
    modules = dict(backbone.base_module.named_modules())
    before = {name: set(vars(module)) for name, module in modules.items()}
    with pytest.raises(IndexError), activation_checkpointing(backbone):
        backbone.model(input_ids=torch.full((1, 2), 10**6))
    assert {name: set(vars(module)) for name, module in modules.items()} == before


def objective_of(backbone: Backbone, start: Delta, task: str, *, checkpointing: bool, rows: int = 8) -> Any:
    return training_objective(
        backbone,
        kind_of_delta(start),
        prepared_rows(backbone, task, rows),
        validation=prepared_rows(backbone, task, 4, seed=1),
        budget=Budget(epochs=2, batch_size=4, checkpointing=checkpointing),
        metric="accuracy",
        seed=0,
    )


def same(first: object, second: object) -> bool:
    assert isinstance(first, TrainingResult)
    assert isinstance(second, TrainingResult)
    pairs = zip(first.delta.tensors().values(), second.delta.tensors().values(), strict=True)
    return all(torch.allclose(*pair, rtol=1e-4, atol=1e-5) for pair in pairs)


@pytest.mark.parametrize("method", ["lora", "last_layer"])
def test_a_training_ends_the_same(bert: Backbone, method: str) -> None:
    """Layers below the edits of `last_layer` are skipped where no dropout is active."""
    start = fresh_delta(bert, method)
    for rate in (0.1, 0.0):
        with ExitStack() as undo:
            for module in bert.model.modules():
                if isinstance(module, torch.nn.Dropout):
                    undo.callback(setattr, module, "p", module.p)
                    module.p = rate
            ends = [
                TrainingRun(
                    bert,
                    start,
                    objective_of(bert, start, "mood", checkpointing=checkpointing),
                    learning_rate=1e-2,
                    seed=0,
                ).run()
                for checkpointing in (False, True)
            ]
        assert same(*ends)


def test_joint_training_ends_the_same(backbone: Backbone) -> None:
    """With batches of different sizes, so that recomputation is row by row."""
    starts = {
        "animals": fresh_delta(backbone, "lora", task="animals"),
        "mood": fresh_delta(backbone, "lora", seed=1),
        "place": fresh_delta(backbone, "prefix", task="place", length=2),
    }
    ends = []
    for checkpointing in (False, True):
        trainings = {
            task: TrainingRun(
                backbone,
                start,
                objective_of(backbone, start, task, checkpointing=checkpointing, rows=6 if task == "mood" else 8),
                learning_rate=1e-2,
                seed=0,
            )
            for task, start in starts.items()
        }
        ends.append(dict(train_jointly(trainings, seed=0)))
    assert all(same(ends[0][task], ends[1][task]) for task in starts)


def test_a_started_stream_can_be_continued_with_or_without(tmp_path: Path) -> None:
    """The task's digest is the same with and without the option, and as before the option existed."""
    entry = write_task(tmp_path, "mood")

    def digest(**budget: Any) -> str:
        task = TaskSpec.model_validate(entry)
        (data,) = load_stream(Stream(name="s", tasks=(task,), budget=Budget(**budget), folder=tmp_path))
        return recipe_digest(data)

    assert digest() == digest(checkpointing=True) == digest(checkpointing=False) != digest(epochs=5)
    assert "checkpointing" not in Budget().model_dump()


def test_a_task_may_override_its_streams_setting(tmp_path: Path) -> None:
    task = TaskSpec.model_validate({**write_task(tmp_path, "mood"), "budget": {"checkpointing": False}})
    stream = Stream(name="s", tasks=(task,), budget=Budget(checkpointing=True, epochs=7), folder=tmp_path)
    (resolved,) = stream.resolved()
    assert resolved.budget == Budget(epochs=7)
