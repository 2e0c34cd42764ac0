"""What a delta says of fixed inputs is the same as long as it and its backbone are."""

from dataclasses import replace

import pytest
import torch

from continual.backbones.backbone import Backbone
from continual.deltas import METHODS, Delta
from continual.errors import DeltaError
from continual.kinds import kind_metadata
from continual.kinds.generation import Generation
from continual.learning.fixed_inputs import TOLERANCE, probe_difference, probe_outputs
from continual.serialization import deserialize
from registry.errors import BlobError
from tests.helpers.tiny_tasks import perturbed_delta, tiny_backbone


def changed(delta: Delta) -> Delta:
    """A delta whose values are a little otherwise: tensors of whole numbers say where, and stay."""
    draw = torch.Generator().manual_seed(3)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(tensor.shape, generator=draw)
        return tensor + 0.1 * noise if tensor.is_floating_point() else tensor

    return replace(delta, values={name: moved(tensor) for name, tensor in delta.values.items()})


@pytest.mark.parametrize("method", METHODS)
def test_every_delta_is_replayed_to_the_bit_and_its_change_is_noticed(backbone: Backbone, method: str) -> None:
    delta = perturbed_delta(backbone, method)
    said = probe_outputs(backbone, delta)
    assert probe_outputs(backbone, delta) == said
    assert probe_difference(backbone, delta, said) == 0.0
    assert probe_difference(replace(backbone, dtype=torch.bfloat16), delta, said) == 0.0, "always float32"
    head = delta.head
    assert head
    other = replace(delta, head=replace(head, bias=head.bias + 1))
    assert probe_difference(backbone, other, said) > TOLERANCE
    if delta.values:
        assert probe_difference(backbone, changed(delta), said) > TOLERANCE


def test_a_decoder_that_answers_is_replayed_too(writer: Backbone) -> None:
    kind = kind_metadata(Generation(longest=4))
    delta = replace(perturbed_delta(writer, "lora"), head=None, kind=kind)
    said = probe_outputs(writer, delta)
    tensors, _ = deserialize(said, what="replay")
    assert ("decoder" in tensors) == bool(writer.family.decoder)
    assert probe_difference(writer, delta, said) == 0.0
    assert probe_difference(writer, changed(delta), said) > TOLERANCE


def test_rounding_is_not_a_change_and_nonsense_is(bert: Backbone) -> None:
    delta = perturbed_delta(bert, "lora")
    said = probe_outputs(bert, delta)
    rounded = delta.map(lambda tensor: tensor * (1 + 1e-6))
    assert 0 < probe_difference(bert, rounded, said) < TOLERANCE
    broken = delta.map(lambda tensor: tensor * float("nan"))
    assert probe_difference(bert, broken, said) == float("inf")
    assert probe_difference(bert, delta, delta.to_bytes()) == float("inf")
    with pytest.raises(BlobError, match="not a stored replay"):
        probe_difference(bert, delta, b"nonsense")
    with pytest.raises(DeltaError, match="learned on backbone"):
        probe_difference(tiny_backbone("bert", seed=1), delta, said)


def test_the_inputs_are_stored_and_not_drawn_again(bert: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    said = probe_outputs(bert, perturbed_delta(bert, "lora"))
    monkeypatch.setattr("continual.learning.fixed_inputs.PROBE_LENGTHS", (2, 2))
    assert probe_difference(bert, perturbed_delta(bert, "lora"), said) == 0.0
