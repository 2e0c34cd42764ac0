"""Placement of edits in a model, and the file of a delta."""

import re
from copy import deepcopy
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, load_delta
from continual.errors import DeltaError, MethodError
from continual.streams.preflight import incompatibilities
from registry.errors import BlobError
from tasks import TaskSpec
from tests.helpers.tiny_tasks import head_of, perturbed_delta


def test_a_site_that_the_family_lacks_is_refused_naming_the_valid_ones(bert: Backbone) -> None:
    with pytest.raises(MethodError, match=r"attn\.zzz.*attn\.q"):
        perturbed_delta(bert, "lora", sites=("attn.zzz",))


WEIGHTS = ("selective", "diff_pruning", "masking", "dora", "intrinsic")
OTHERS = ("norms", "embeddings", "tokens", "positions", "ffn", "ffn.inner", "attn.heads", "attn.kv")


@pytest.mark.parametrize(
    ("method", "site"),
    [*product(WEIGHTS, OTHERS), *product(["lora"], ("embeddings", "tokens", "positions", "attn.kv"))],
)
def test_a_site_that_the_method_cannot_change_is_refused_before_training(
    bert: Backbone, method: str, site: str
) -> None:
    settings = {"method": {"name": method, "sites": ["attn.q", site]}, "budget": {}}
    source = {"path": "json", "data_files": {"train": "mood.jsonl"}}
    task = {"name": "mood", "text": "text", "label": "label", "source": source}
    (message,) = incompatibilities(bert, TaskSpec.model_validate(task | settings))
    assert re.search(rf"site '{site}' stands for .*; give sites among: .*attn\.q, .*ffn\.out", message)


def test_places_are_checked_against_the_model(bert: Backbone) -> None:
    assert [place.name for place in bert.modules_at("attn.q")] == ["layer.0.attn.q", "layer.1.attn.q"]
    wide = bert.modules_at("ffn.in")[0]
    assert (wide.d_in, wide.d_out) == (32, 48)
    model = deepcopy(bert.model)
    del model.encoder.layer[1].attention.self.query
    with pytest.raises(Exception, match=r"encoder\.layer\.1\.attention\.self\.query"):
        replace(bert, model=model).modules_at("attn.q")


@pytest.mark.parametrize(
    "data",
    [b"", b"not a delta", b"\xff" * 64, b"\x02\x00\x00\x00\x00\x00\x00\x00{}"],
    ids=["empty", "text", "noise", "no tensors"],
)
def test_invalid_bytes_are_refused(data: bytes) -> None:
    with pytest.raises((BlobError, DeltaError), match="not a stored delta"):
        load_delta(data)


def spoiled_file(delta: Delta, *, drop: str | None = None, **about: Any) -> bytes:
    """Return a delta's file without one tensor, or with other metadata."""
    import json

    from safetensors.torch import save

    metadata = {
        "method": delta.method,
        "settings": delta.settings.model_dump(mode="json"),
        "backbone": delta.backbone,
        "labels": head_of(delta).labels,
        "pooling": head_of(delta).pooling,
    }
    entries = {key: value for key, value in (metadata | about).items() if value is not None}
    tensors = {key: tensor for key, tensor in delta.tensors().items() if key != drop}
    return save(tensors, metadata={"continual": json.dumps(entries, sort_keys=True)})


def test_the_helpers_file_is_valid_when_not_spoiled(bert: Backbone) -> None:
    delta = perturbed_delta(bert, "lora")
    assert load_delta(spoiled_file(delta)).digest == delta.digest


@pytest.mark.parametrize(
    "spoil",
    [
        {"drop": "head/weight"},
        {"method": None},
        {"method": "zzz"},
        {"settings": {"rank": 0}},
        {"settings": {"zzz": 1}},
        {"labels": None},
        {"pooling": "zzz"},
    ],
    ids=str,
)
def test_an_incomplete_file_is_refused(bert: Backbone, spoil: dict[str, Any]) -> None:
    with pytest.raises(DeltaError):
        load_delta(spoiled_file(perturbed_delta(bert, "lora"), **spoil))
