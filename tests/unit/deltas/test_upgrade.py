"""Deltas stored by earlier releases compute what they did: the forms of before are settings now."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from continual import serialization
from continual.backbones.backbone import Backbone
from continual.deltas import Delta, attached, load_delta
from continual.serialization import serialize
from tests.helpers.parity import batch_of
from tests.helpers.tiny_tasks import perturbed_delta, tiny_backbone

Settings = Mapping[str, Any]
SELF = {"cross_attention": False}
SHIFTED = {"shift_positions": True, **SELF}
# As stored, and what says the same now of a task that generates.
STORED: list[tuple[str, Settings, Settings]] = [
    ("adapter_pfeiffer", {"size": 5}, {"size": 5, "reads": "output", "blocks": ["ffn"]}),
    ("parallel_adapter", {"blocks": ["attn", "ffn"]}, {"blocks": ["self", "ffn"], "reads": "input"}),
    ("prefix", {"length": 3}, {"length": 3, **SHIFTED}),
    ("mam", {"length": 3, "size": 5}, {"length": 3, "size": 5, "reads": "input", **SHIFTED}),
    ("ia3", {}, SELF),
    ("multi_head_adapter", {"size": 5}, {"size": 5, **SELF}),
    ("lora", {"rank": 2, "sites": ["attn.q", "ffn.out"]}, {"rank": 2, "sites": ["self.q", "ffn.out"]}),
    ("full", {}, {"exact_parameters": False}),
    ("last_layer", {}, {"exact_parameters": False}),
    (
        "union",
        {"parts": ["bitfit", {"name": "prefix", "length": 2}]},
        {"parts": ["bitfit", {"name": "prefix", "length": 2, **SHIFTED}]},
    ),
    (
        "sequential",
        {"parts": ["lora", {"name": "ia3"}]},
        {"parts": ["lora", {"name": "ia3", **SELF}]},
    ),
    ("subspace", {"of": {"name": "lora", "sites": ["attn.v"]}}, {"of": {"name": "lora", "sites": ["self.v"]}}),
]


def as_stored(delta: Delta, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Return the file that format 2 had of a delta."""
    with monkeypatch.context() as patch:
        patch.setattr(serialization, "FORMAT_VERSION", 2)
        metadata = {key: value for key, value in delta.metadata().items() if key != "format"}
        return serialize(delta.storage_tensors(), {**metadata, "settings": settings})


@torch.no_grad()
def logits(writer: Backbone, delta: Delta) -> Tensor:
    batch = batch_of(writer)
    decoder_inputs = {"decoder_input_ids": batch["input_ids"]} if writer.family.decoder else {}
    with attached(writer, delta):
        output: Tensor = writer.language_model(**batch, **decoder_inputs).logits
    return output


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize(("method", "before", "now"), STORED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_stored_delta_keeps_its_form(
    family: str, method: str, before: Settings, now: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = replace(tiny_backbone(family), generates=True)
    delta = replace(perturbed_delta(writer, method, **now), head=None, kind={"kind": "generation"})
    loaded = load_delta(as_stored(delta, before, monkeypatch))
    assert loaded.settings == delta.settings
    assert torch.equal(logits(writer, loaded), logits(writer, delta))
    assert load_delta(loaded.to_bytes()).settings == delta.settings, "stored again, it is of this format"


CHANGED: Mapping[str, Settings] = {
    "prefix": {"shift_positions": True},
    "mam": {"shift_positions": True, "reads": "input"},
}


@pytest.mark.parametrize("method", ["prefix", "mam", "ia3", "lora"])
def test_of_an_encoder_only_the_form_that_changed_is_another(
    bert: Backbone, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta = perturbed_delta(bert, method)
    before = {name: value for name, value in delta.metadata()["settings"].items() if name in ("length", "size", "rank")}
    changed = CHANGED.get(method, {})
    loaded = load_delta(as_stored(delta, before, monkeypatch))
    assert loaded.settings == delta.settings.model_copy(update=changed)
