"""Backbones in 8 and 4 bits: outputs, gradients, fingerprints, and methods that are refused."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny_tasks import (
    fresh_delta,
    labels_of,
    logits,
    perturbed_delta,
    prepared_rows,
    save_backbone,
    tiny_backbone,
)

pytest.importorskip("bitsandbytes", reason="bitsandbytes (extra `quantized`) is not installed")
from continual.backbones.backbone import Backbone, load_backbone
from continual.backbones.fingerprint import fingerprint
from continual.backbones.quantization import plain_name
from continual.deltas import METHODS, Bank, Delta, attached
from continual.errors import BackboneError, ExchangeError, MethodError
from continual.exchange.merging import merge_into_model
from continual.features.tokens import pad
from continual.kinds.classification import Classification
from continual.kinds.language_model import token_nll
from tests.helpers.quantized_backbones import (
    HIDDEN_SIZE,
    checkpoint_folder,
    dequantized_backbone,
    float_backbone,
    quantized_backbone,
)
from tests.helpers.writing import reference, write

CHANGES_WEIGHTS = {"full", "last_layer", "selective", "diff_pruning", "masking", "dora", "intrinsic"}
CHANGES_WEIGHTS |= {"lora_xs", "tiny_lora", "oft", "boft"}
WRITERS = [kind for kind in HIDDEN_SIZE if kind != "bert"]


@pytest.fixture(params=(8, 4))
def bits(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture(params=HIDDEN_SIZE)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def put_on(backbone: Backbone, delta: Delta) -> Delta:
    return replace(delta, backbone=backbone.fingerprint)


def answered(backbone: Backbone, delta: Delta) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the states of some texts, and the gradients of the delta's values."""
    rows = prepared_rows(backbone, "mood", 6)
    learned = put_on(backbone, delta).trainable(backbone.device)
    with attached(backbone, learned):
        loss = Classification(labels_of("mood")).loss(backbone, learned, rows, range(6))
        torch.autograd.backward(loss)
        with torch.no_grad(), backbone.autocast():
            states = backbone.hidden_states(pad(backbone, rows.tokens, range(6)))
    return states.float(), {key: value.grad for key, value in learned.values.items() if value.grad is not None}


def apart(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm() / second.norm())


def test_outputs_and_gradients_match_the_dequantised_weights(kind: str, bits: int) -> None:
    """Quantised weights deviate from exact arithmetic no more than the same weights in bfloat16."""
    delta = perturbed_delta(float_backbone(kind), "lora", rank=2)
    exact = answered(dequantized_backbone(kind, bits, "float32"), delta)
    errors, rounding_errors = (
        _apart_from(exact, answered(make(kind, bits), delta)) for make in (quantized_backbone, dequantized_backbone)
    )
    pairs = list(zip(errors, rounding_errors, strict=True))
    assert all(error < 2 * rounding + 0.01 for error, rounding in pairs), pairs


def test_in_float32_4_bits_are_exact(kind: str) -> None:
    delta = perturbed_delta(float_backbone(kind), "lora", rank=2)
    actual, exact = (answered(make(kind, 4, "float32"), delta) for make in (quantized_backbone, dequantized_backbone))
    assert max(_apart_from(exact, actual)) < 1e-4
    assert quantized_backbone(kind, 4, "float32").fingerprint == quantized_backbone(kind, 4).fingerprint


def _apart_from(
    exact: tuple[Tensor, dict[str, Tensor]], actual: tuple[Tensor, dict[str, Tensor]]
) -> tuple[float, float]:
    """Return the relative deviation of states and gradients from the exact ones."""
    assert actual[1].keys() == exact[1].keys()
    gradients = (torch.cat([gradient.flatten() for gradient in result[1].values()]) for result in (actual, exact))
    return apart(actual[0], exact[0]), apart(*gradients)


def test_outputs_do_not_depend_on_earlier_batches(kind: str, bits: int) -> None:
    backbone = load_backbone(str(checkpoint_folder(kind)), device="cpu", bits=bits)
    delta = put_on(backbone, perturbed_delta(float_backbone(kind), "lora", rank=2))
    _, first = answered(backbone, delta)
    first_logits = logits(backbone, delta, _tokens(kind))
    _, second = answered(backbone, delta)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(first_logits, logits(backbone, delta, _tokens(kind)))
    assert backbone.fingerprint == fingerprint(backbone.base_module)


def _tokens(kind: str) -> Any:
    return prepared_rows(float_backbone(kind), "mood", 5, seed=3).tokens


def test_it_has_a_stable_fingerprint_of_its_own(kind: str, bits: int) -> None:
    first = quantized_backbone(kind, bits)
    second = load_backbone(f"{checkpoint_folder(kind)}@{bits}bit", device="cpu")
    assert first.fingerprint == second.fingerprint == fingerprint(first.base_module)
    assert first.name == second.name == f"{checkpoint_folder(kind)}@{bits}bit"
    assert (
        len(
            {
                float_backbone(kind).fingerprint,
                quantized_backbone(kind, 8).fingerprint,
                quantized_backbone(kind, 4).fingerprint,
            }
        )
        == 3
    )
    assert first.dtype == torch.bfloat16
    assert first.parameter_count == float_backbone(kind).parameter_count
    embeddings = first.model.get_input_embeddings().weight
    assert torch.equal(embeddings, float_backbone(kind).model.get_input_embeddings().weight)


def test_an_already_quantised_checkpoint_is_the_same_backbone(kind: str, bits: int, tmp_path: Path) -> None:
    save_backbone(quantized_backbone(kind, bits), tmp_path)
    loaded = load_backbone(str(tmp_path), device="cpu")
    assert loaded.fingerprint == quantized_backbone(kind, bits).fingerprint
    with pytest.raises(BackboneError, match="quantised already"):
        load_backbone(str(tmp_path), device="cpu", bits=bits)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_works_or_is_refused_before_it_begins(method: str, bits: int) -> None:
    backbone = quantized_backbone("bert", bits)
    if method in CHANGES_WEIGHTS:
        with pytest.raises(MethodError, match="quantised"):
            fresh_delta(backbone, method)
        return
    delta = perturbed_delta(backbone, method)
    _, gradients = answered(backbone, delta)
    learned = {key for key, value in delta.values.items() if value.is_floating_point()}
    assert gradients.keys() == learned or method in ("subspace", "sequential")
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize("method", ["lora", "adapter", "multi_head_adapter", "ia3", "prefix", "prompt"])
def test_rows_of_many_tasks_in_one_batch(method: str, bits: int) -> None:
    backbone, tokens = quantized_backbone("llama", bits), _tokens("llama")
    deltas = {"one": perturbed_delta(backbone, method), "other": perturbed_delta(backbone, "lora", seed=1)}
    bank = Bank(backbone, slots=2)
    for name, delta in deltas.items():
        bank.put(name, delta)
    owners = ["one", None, "other", "one", "one"]
    order, mixture = bank.mixed_batch(owners)
    batch = pad(backbone, tokens, order)
    with torch.no_grad(), attached(backbone, mixture), backbone.autocast():
        together = backbone.hidden_states(batch)
    for index, row in enumerate(order):
        single = {key: value[index : index + 1] for key, value in batch.items()}
        owner = owners[row]
        with torch.no_grad(), attached(backbone, deltas[owner] if owner else None), backbone.autocast():
            alone = backbone.hidden_states(single)
        mask = single["attention_mask"].bool()
        assert apart(together[index : index + 1][mask], alone[mask]) < 0.05


@pytest.mark.parametrize("kind", WRITERS)
def test_it_generates_and_learns_a_generation_task(kind: str, bits: int) -> None:
    backbone = replace(quantized_backbone(kind, bits), generates=True)
    delta = perturbed_delta(backbone, "lora", rank=2)
    prompts, ends = [tuple(range(41, 47)), (7, 8, 9)], [(12, 13), (14,)]
    generated = write(backbone, delta, prompts, max_new_tokens=6)
    assert generated == [reference(backbone, delta, prompt, max_new_tokens=6, cache=False) for prompt in prompts]
    learned = delta.trainable(backbone.device)
    with attached(backbone, learned):
        torch.autograd.backward(token_nll(backbone, prompts, ends)[0].sum())
    assert all(value.grad is not None and value.grad.any() for value in learned.values.values())


def test_its_delta_cannot_be_merged_into_weights(bits: int) -> None:
    backbone = quantized_backbone("bert", bits)
    with pytest.raises(ExchangeError, match="quantised"):
        merge_into_model(backbone, fresh_delta(backbone, "lora"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("minilm", {"bits": 5}, "allowed: 8 or 4"),
        ("minilm@8bit", {"bits": 4}, "is one of 8 bits, and 4 are asked for"),
        ("FOLDER@4bit", {"device": "meta"}, "cpu or cuda, not on 'meta'"),
        ("FOLDER@4bit", {"device": "split"}, "cannot be split"),
    ],
)
def test_an_unsupported_quantisation_is_refused_with_the_reason(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BackboneError, match=message):
        load_backbone(name.replace("FOLDER", str(checkpoint_folder("bert"))), **options)


@pytest.mark.parametrize("missing", ["bitsandbytes", "accelerate"])
def test_a_missing_package_names_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(BackboneError, match=rf"pip install 'continual-deltas\[quantized\]'.*{missing} is missing"):
        load_backbone(str(checkpoint_folder("bert")), device="cpu", bits=8)


def test_weights_without_whole_blocks_stay_in_8_bits(tmp_path: Path) -> None:
    save_backbone(tiny_backbone("bert"), tmp_path)
    with pytest.raises(BackboneError, match="a multiple of 64 numbers, and one of this backbone reads 32; use 8 bits"):
        load_backbone(str(tmp_path), device="cpu", bits=4)


def test_other_quantisation_formats_are_refused(tmp_path: Path) -> None:
    backbone = tiny_backbone("bert")
    backbone.model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    save_backbone(backbone, tmp_path)
    with pytest.raises(BackboneError, match="quantised by gptq; allowed: bitsandbytes"):
        load_backbone(str(tmp_path), device="cpu")


def test_names() -> None:
    assert plain_name("a/b@4bit") == ("a/b", 4)
    assert plain_name("a@b", 8) == ("a@b", 8)
    assert plain_name("@8bit") == ("@8bit", None)
