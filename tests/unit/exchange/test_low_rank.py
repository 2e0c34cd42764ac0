"""Deltas as LoRA: PEFT computes the same with them, and what LoRA cannot hold is refused."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import METHODS, Delta, attached, finalize
from continual.errors import ExchangeError
from continual.exchange import low_rank
from continual.exchange.files import ExportOrigin, write_adapter
from continual.exchange.low_rank import LowRankAdapter, apply_low_rank, to_low_rank
from continual.exchange.merging import merge_obstacle
from tests.helpers.tiny_tasks import REQUIRED_SETTINGS, fresh_delta, perturbed_delta, tiny_backbone

peft: Any = pytest.importorskip("peft")

FULL_RANK = 80  # above the dimensions of the tiny models
LORA: Mapping[str, dict[str, Any]] = {
    "lora": {"rank": 3, "alpha": 5.0},
    "lora at some sites": {"rank": 4, "sites": ("attn.q", "ffn.out")},
    "rank-stabilised lora": {"rank": 3, "alpha": 2.0, "scaling": "rank_stabilized"},
    "pissa": {"rank": 3, "init": "pissa"},
}
AFFINE = sorted(
    name
    for name, method in METHODS.items()
    if not merge_obstacle(method.model_validate(REQUIRED_SETTINGS.get(name, {})))
    and name not in ("lora", "bitfit", "layer_norm", "union", "sequential", "probe")
)
BIASES = ("full", "last_layer", "selective", "ia3")  # which change the biases of modules that have any


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def writer(request: pytest.FixtureRequest) -> Backbone:
    return replace(tiny_backbone(request.param), generates=True)


def language_delta(backbone: Backbone, method: str, **settings: Any) -> Delta:
    """Return a delta as the registry stores it, changed about as much as by training, answered by the model."""
    fresh, moved = (make(backbone, method, **settings) for make in (fresh_delta, perturbed_delta))
    values = {key: torch.lerp(fresh.values[key], moved.values[key], 0.2) for key in fresh.values}
    return finalize(backbone, replace(moved, values=values, head=None), stage=0)


@torch.no_grad()
def logits_of(model: Any) -> Tensor:
    ids = torch.arange(24).reshape(2, 12) + 4
    logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits


def under_delta(backbone: Backbone, delta: Delta) -> Tensor:
    with attached(backbone, delta):
        return logits_of(backbone.language_model)


def pefts_logits(backbone: Backbone, converted: LowRankAdapter, folder: Path) -> Tensor:
    write_adapter(folder, converted.adapter, ExportOrigin(backbone=backbone.fingerprint, delta="a@1", digest="0"))
    return logits_of(peft.PeftModel.from_pretrained(deepcopy(backbone.language_model), folder).eval())


@pytest.mark.parametrize("case", LORA)
def test_lora_stays_as_it_is(writer: Backbone, tmp_path: Path, case: str) -> None:
    delta = language_delta(writer, "lora", **LORA[case])
    converted = to_low_rank(writer, delta)
    assert converted.weight_error is None
    config = converted.adapter.config
    assert {len(tensor) for name, tensor in converted.adapter.tensors.items() if "lora_A" in name} == {converted.rank}
    assert "rank_pattern" not in config
    assert config["lora_alpha"] / config["r"] == pytest.approx(delta.settings.scale)  # type: ignore[attr-defined]
    expected = under_delta(writer, delta)
    assert not torch.allclose(expected, logits_of(writer.language_model), atol=1e-2)
    torch.testing.assert_close(pefts_logits(writer, converted, tmp_path), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits_of(apply_low_rank(writer, converted).language_model), expected, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of PEFT: tied tables
@pytest.mark.parametrize("method", AFFINE)
def test_affine_methods_are_exact_at_full_rank(writer: Backbone, tmp_path: Path, method: str) -> None:
    delta = language_delta(writer, method)
    if writer.family.name == "gpt2" and method in BIASES:
        with pytest.raises(ExchangeError, match=f"cannot hold this {method} delta.*--format transformers"):
            to_low_rank(writer, delta)
        return
    converted = to_low_rank(writer, delta, rank=FULL_RANK)
    assert converted.weight_error is not None
    assert converted.weight_error < 1e-5
    expected = under_delta(writer, delta)
    torch.testing.assert_close(pefts_logits(writer, converted, tmp_path), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(logits_of(apply_low_rank(writer, converted).language_model), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["bitfit", "layer_norm", "adapter", "prefix"])
def test_what_is_no_change_of_weights_is_refused(writer: Backbone, method: str) -> None:
    with pytest.raises(ExchangeError, match=rf"{method} delta.*(LoRA|weights)"):
        to_low_rank(writer, language_delta(writer, method))


def test_the_rank_is_what_the_change_needs(writer: Backbone) -> None:
    parts = 3 if writer.family.name == "gpt2" else 1  # of c_attn, each with a rank of its own
    assert to_low_rank(writer, language_delta(writer, "lora_xs", rank=5)).rank == 5 * parts
    dense = language_delta(writer, "masking")
    assert to_low_rank(writer, dense).rank == 32
    errors = [to_low_rank(writer, dense, rank=rank).weight_error for rank in (2, 8, 16)]
    assert errors == sorted(errors, reverse=True)  # type: ignore[type-var]
    assert errors[-1] > 0.01  # type: ignore[operator]


def test_a_smaller_rank_is_the_best_one(writer: Backbone) -> None:
    delta = language_delta(writer, "lora", rank=6)
    smaller = to_low_rank(writer, delta, rank=4)
    assert smaller.rank == 4
    full = to_low_rank(writer, delta)
    lost = total = 0.0
    for name, a in full.adapter.tensors.items():
        if ".lora_A." in name:
            sizes = torch.linalg.svdvals(full.adapter.tensors[name.replace("_A", "_B")] @ a * 8 / 6)
            lost, total = lost + float(sizes[4:].square().sum()), total + float(sizes.square().sum())
    assert smaller.weight_error == pytest.approx((lost / total) ** 0.5, rel=1e-3)


def test_large_matrices_are_decomposed_by_random_projection(writer: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    delta = language_delta(writer, "masking")
    exact = to_low_rank(writer, delta, rank=8)
    monkeypatch.setattr(low_rank, "EXACT_SIZE", 16)
    drawn = to_low_rank(writer, delta, rank=8)
    assert drawn.weight_error == pytest.approx(exact.weight_error, rel=0.02)


@torch.no_grad()
def test_the_gain_of_the_last_norm_goes_to_the_head() -> None:
    backbone = tiny_backbone("llama")
    delta = finalize(backbone, perturbed_delta(backbone, "full"), stage=0)
    converted = to_low_rank(backbone, delta, rank=FULL_RANK)
    assert delta.head is not None
    assert converted.head is not None
    batch = {"input_ids": torch.arange(8)[None] + 4, "attention_mask": torch.ones(1, 8, dtype=torch.long)}
    with attached(backbone, delta):
        expected = delta.head(backbone.hidden_states(batch))
    plain = apply_low_rank(backbone, converted)
    torch.testing.assert_close(converted.head(plain.hidden_states(batch)), expected, rtol=1e-3, atol=1e-3)
    assert "base_model.model.lm_head.lora_A.weight" not in converted.adapter.tensors


def test_a_head_alone_has_an_adapter_that_changes_nothing() -> None:
    backbone = tiny_backbone("llama")
    converted = to_low_rank(backbone, fresh_delta(backbone, "probe"))
    assert converted.weight_error == 0
    assert len(converted.adapter.tensors) == 2
    assert not any(tensor.any() for tensor in converted.adapter.tensors.values())
