"""Replay of fixed inputs: a delta's outputs stay the same as long as it and its backbone do."""

from dataclasses import replace

import pytest
import torch

from continual.backbones.backbone import Backbone
from continual.deltas import Delta
from continual.errors import DeltaError
from continual.kinds import kind_metadata
from continual.kinds.generation import Generation
from continual.learning.probes import probe_difference, probe_dtype, probe_outputs
from continual.serialization import deserialize
from registry.errors import BlobError
from tests.helpers.method_pairs import every_method
from tests.helpers.tiny_tasks import perturbed_delta, tiny_backbone


def changed(delta: Delta) -> Delta:
    """Return a delta with slightly changed values; integer tensors, which hold indices, stay."""
    draw = torch.Generator().manual_seed(3)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(tensor.shape, generator=draw)
        return tensor + 0.1 * noise if tensor.is_floating_point() else tensor

    return replace(delta, values={name: moved(tensor) for name, tensor in delta.values.items()})


@every_method
def test_every_delta_is_replayed_to_the_bit_and_changes_are_detected(backbone: Backbone, method: str) -> None:
    delta = perturbed_delta(backbone, method)
    outputs = probe_outputs(backbone, delta)
    assert probe_outputs(backbone, delta) == outputs
    assert probe_difference(backbone, delta, outputs).value == 0.0
    low = replace(backbone, dtype=torch.bfloat16)
    low_outputs = probe_outputs(low, delta)
    assert (probe_dtype(outputs), probe_dtype(low_outputs)) == ("float32", "bfloat16")
    assert probe_difference(low, delta, low_outputs).value == 0.0
    head = delta.head
    assert head
    shifted = replace(delta, head=replace(head, bias=head.bias + 1))
    assert not probe_difference(backbone, shifted, outputs).is_rounding
    if delta.values:
        assert not probe_difference(backbone, changed(delta), outputs).is_rounding


def test_a_generating_decoder_is_replayed_too(writer: Backbone) -> None:
    kind = kind_metadata(Generation(longest=4))
    delta = replace(perturbed_delta(writer, "lora"), head=None, kind=kind)
    outputs = probe_outputs(writer, delta)
    tensors, _ = deserialize(outputs, what="replay")
    assert ("decoder" in tensors) == bool(writer.family.decoder)
    assert probe_difference(writer, delta, outputs).value == 0.0
    assert not probe_difference(writer, changed(delta), outputs).is_rounding


def test_rounding_is_no_change_and_nonsense_is(bert: Backbone) -> None:
    delta = perturbed_delta(bert, "lora")
    outputs = probe_outputs(bert, delta)
    rounded = delta.map(lambda tensor: tensor * (1 + 1e-6))
    difference = probe_difference(bert, rounded, outputs)
    assert difference.is_rounding
    assert difference.value > 0
    broken = delta.map(lambda tensor: tensor * float("nan"))
    assert probe_difference(bert, broken, outputs).value == float("inf")
    assert probe_difference(bert, delta, delta.to_bytes()).value == float("inf")
    with pytest.raises(BlobError, match="not a stored replay"):
        probe_difference(bert, delta, b"nonsense")
    with pytest.raises(DeltaError, match="learned on backbone"):
        probe_difference(tiny_backbone("bert", seed=1), delta, outputs)


def test_the_inputs_are_stored_and_not_drawn_again(bert: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = probe_outputs(bert, perturbed_delta(bert, "lora"))
    monkeypatch.setattr("continual.learning.probes.PROBE_LENGTHS", (2, 2))
    assert probe_difference(bert, perturbed_delta(bert, "lora"), outputs).value == 0.0
