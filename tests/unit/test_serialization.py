"""Formats of stored blobs: older ones are read, newer ones refused."""

import json
from collections.abc import Callable, Mapping

import pytest
import torch
from safetensors.torch import save

from continual import serialization
from continual.backbones.backbone import Backbone
from continual.deltas import load_delta
from continual.features.signature import Signature, compute_signature
from continual.learning.record import deserialize_outputs
from continual.serialization import deserialize, serialize
from registry.errors import BlobError
from tests.helpers.tiny_tasks import perturbed_delta

TENSORS = {"b": torch.arange(3), "a": torch.ones(2, 2).T[:1]}
PLAIN = {"a": torch.ones(2)}


def test_tensors_and_metadata_are_read_in_order() -> None:
    tensors, about = deserialize(serialize(TENSORS, {"method": "lora"}), what="delta")
    assert list(tensors) == ["a", "b"]
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert about == {"format": serialization.FORMAT_VERSION, "method": "lora"}
    assert serialize(TENSORS) == serialize(dict(reversed(TENSORS.items())))


def test_a_file_without_a_format_has_the_first() -> None:
    assert deserialize(save(PLAIN), what="answer")[1] == {"format": 1}
    about = {"continual": json.dumps({"method": "lora"})}
    assert deserialize(save(PLAIN, metadata=about), what="delta")[1] == {"format": 1, "method": "lora"}


FILES: Mapping[Callable[[bytes], object], Callable[[Backbone], bytes]] = {
    load_delta: lambda bert: perturbed_delta(bert, "lora").to_bytes(),
    Signature.from_bytes: lambda _: compute_signature(torch.ones(2, 3), torch.tensor([0, 1]), count=2).to_bytes(),
    deserialize_outputs: lambda _: serialize(TENSORS),
}


@pytest.mark.parametrize("read", FILES)
def test_a_newer_format_is_refused_with_the_remedy(
    read: Callable[[bytes], object], bert: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serialization, "FORMAT_VERSION", 7)
    written = FILES[read](bert)
    read(written)
    monkeypatch.undo()
    with pytest.raises(BlobError, match=r"of format 7, and this release .* up to 3: .* Install that release"):
        read(written)


@pytest.mark.parametrize("about", ["[1]", '{"format": "new"}', '{"format": null}', "{"])
def test_invalid_metadata_is_refused(about: str) -> None:
    with pytest.raises(BlobError, match="not a stored delta"):
        deserialize(save(PLAIN, metadata={"continual": about}), what="delta")


def test_a_signature_needs_its_tensors() -> None:
    with pytest.raises(BlobError, match="a signature has counts, sums and moment"):
        Signature.from_bytes(serialize(TENSORS))
