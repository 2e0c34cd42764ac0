"""Values of deltas in float16 precision: the file holds half the bytes and loses nothing."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import METHODS, Delta, load_delta
from continual.deltas.delta import pack_float16, round_to_float16, unpack_float32
from continual.serialization import serialize
from continual.training.state import TrainingState
from continual.training.training_run import TrainingResult
from tests.helpers.tiny_tasks import fresh_delta, logits, mood_run, perturbed_delta, prepared_rows

DRAWN = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
LARGEST, SMALLEST = torch.finfo(torch.float16).max, 2.0**-24  # the smallest is a subnormal


def same_bits(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and first.numpy().tobytes() == second.numpy().tobytes()


@pytest.mark.parametrize("scale", [1e-3, 0.02, 1.0, 300.0])
def test_values_are_rounded_to_the_nearest_float16_once(scale: float) -> None:
    value = scale * DRAWN
    rounded = round_to_float16(value)
    assert rounded.dtype == torch.float32
    assert same_bits(rounded, torch.from_numpy(value.numpy().astype("float16").astype("float32")))
    assert not torch.equal(rounded, value)
    assert float((rounded - value).norm() / value.norm()) < 2**-11
    assert same_bits(round_to_float16(rounded), rounded)
    assert pack_float16(rounded).dtype == torch.float16
    assert same_bits(unpack_float32(pack_float16(rounded)), rounded)


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([1.0 + 2**-20, 2 * LARGEST]),
        torch.tensor([1.0 + 2**-20, float("nan")]),
        1e-9 * DRAWN,
        1e-6 * DRAWN,  # a subnormal would lose some percent of it
        torch.full((3, 3), SMALLEST / 3),
        torch.arange(70000, dtype=torch.int32),
        torch.tensor([3, 255], dtype=torch.uint8),
    ],
    ids=["out of range", "no number", "below", "subnormal", "far below", "whole numbers", "bits"],
)
def test_tensors_that_float16_cannot_represent_stay_float32(value: Tensor) -> None:
    for result in (round_to_float16(value), pack_float16(value), unpack_float32(pack_float16(value))):
        assert same_bits(result, value)


def test_a_few_tiny_values_underflow_to_zero() -> None:
    value = torch.tensor([1.0, -1e-9, LARGEST, -0.0])
    assert torch.equal(round_to_float16(value), torch.tensor([1.0, 0.0, LARGEST, 0.0]))
    assert same_bits(unpack_float32(pack_float16(round_to_float16(value))), round_to_float16(value))


@pytest.mark.parametrize("method", METHODS)
def test_stored_values_are_loaded_bit_for_bit(bert: Backbone, method: str) -> None:
    stored = perturbed_delta(bert, method).quantise_to_float16()
    data = stored.to_bytes()
    types = {key: tensor.dtype for key, tensor in load(data).items() if tensor.is_floating_point()}
    assert {key for key, dtype in types.items() if dtype != torch.float16} == {"head/weight", "head/bias"}
    back, expected = load_delta(data).tensors(), stored.tensors()
    assert back.keys() == expected.keys()
    assert all(same_bits(back[key], expected[key]) for key in back)
    assert load_delta(data).digest == stored.digest


def test_a_file_has_half_the_bytes(bert: Backbone) -> None:
    delta = perturbed_delta(bert, "lora", rank=32)
    before = serialize(delta.tensors(), delta.metadata())
    assert delta.to_bytes() == before, "values that were not rounded keep every bit"
    assert len(delta.quantise_to_float16().to_bytes()) < 0.55 * len(before)
    assert 0 <= len(delta.quantise_to_float16().to_bytes()) - delta.quantise_to_float16().size < 8000, (
        "names and settings"
    )


def trained(backbone: Backbone, start: Delta, *, epochs: int) -> tuple[TrainingResult, list[TrainingState]]:
    states: list[TrainingState] = []
    return replace(mood_run(backbone, start, epochs=epochs), on_state=states.append).run(), states


LATE = {"parts": [{"name": "lora", "rank": 2}, {"name": "prefix", "length": 3, "reparameterise": 6}]}


@pytest.mark.parametrize(
    ("method", "settings"), [("lora", {}), ("ia3", {}), ("diff_pruning", {"share": 0.1}), ("sequential", LATE)]
)
@pytest.mark.parametrize("epochs", [0, 2])
def test_the_scored_delta_is_the_stored_delta(
    bert: Backbone, method: str, settings: dict[str, Any], epochs: int
) -> None:
    """Without an epoch the second stage only finalizes, which changes the values that were scored."""
    result, states = trained(bert, perturbed_delta(bert, method, **settings), epochs=epochs)
    stored, tokens = load_delta(result.delta.to_bytes()), prepared_rows(bert, "mood", 6, seed=1).tokens
    expected = logits(bert, states[-1].best.delta, tokens)
    assert torch.equal(logits(bert, stored, tokens), expected)
    assert torch.equal(logits(bert, result.delta, tokens), expected)


def test_training_continues_from_unrounded_values(bert: Backbone) -> None:
    result, states = trained(bert, fresh_delta(bert, "lora"), epochs=2)
    assert all(same_bits(value, round_to_float16(value)) for value in result.delta.values.values())
    assert not any(
        torch.equal(value, round_to_float16(value)) for value in states[-1].current.detached().values.values()
    )


def test_files_of_earlier_releases_are_read_unchanged(bert: Backbone) -> None:
    delta = perturbed_delta(bert, "lora")
    back = load_delta(serialize(delta.tensors(), delta.metadata() | {"format": 1}))
    assert all(same_bits(value, delta.values[key]) for key, value in back.values.items())
    about = {"continual": '{"method": "lora", "settings": {}, "backbone": "b", "kind": {}}'}
    imported = load_delta(save({"place/0/A": DRAWN.half()}, metadata=about))
    assert same_bits(imported.values["place/0/A"], DRAWN.half().float())
