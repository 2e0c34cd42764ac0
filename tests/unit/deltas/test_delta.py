"""Deltas as they are placed and stored."""

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


def test_a_site_that_the_family_lacks_is_refused_naming_those_it_has(bert: Backbone) -> None:
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
    own = {"method": {"name": method, "sites": ["attn.q", site]}, "budget": {}}
    source = {"path": "json", "data_files": {"train": "mood.jsonl"}}
    task = {"name": "mood", "text": "text", "label": "label", "source": source}
    (said,) = incompatibilities(bert, TaskSpec.model_validate(task | own))
    assert re.search(rf"site '{site}' stands for .*; give sites among: .*attn\.q, .*ffn\.out", said)


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
def test_bytes_that_are_no_delta_are_refused(data: bytes) -> None:
    with pytest.raises((BlobError, DeltaError), match="not a stored delta"):
        load_delta(data)


def spoiled_file(delta: Delta, *, drop: str | None = None, **about: Any) -> bytes:
    """A delta's file without one tensor, or that says something else about itself."""
    import json

    from safetensors.torch import save

    said = {
        "method": delta.method,
        "settings": delta.settings.model_dump(mode="json"),
        "backbone": delta.backbone,
        "labels": head_of(delta).labels,
        "pooling": head_of(delta).pooling,
    }
    kept = {key: value for key, value in (said | about).items() if value is not None}
    tensors = {key: tensor for key, tensor in delta.tensors().items() if key != drop}
    return save(tensors, metadata={"continual": json.dumps(kept, sort_keys=True)})


def test_the_file_written_here_is_a_delta_when_not_spoiled(bert: Backbone) -> None:
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
def test_a_file_that_is_half_a_delta_is_refused(bert: Backbone, spoil: dict[str, Any]) -> None:
    with pytest.raises(DeltaError):
        load_delta(spoiled_file(perturbed_delta(bert, "lora"), **spoil))
