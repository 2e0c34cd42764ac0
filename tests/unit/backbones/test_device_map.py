"""Backbones split over devices and disk: the same outputs, and no training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny_tasks import perturbed_delta, prepared_rows, save_backbone, tiny_backbone, write_task
from tests.helpers.writing import reference, write

pytest.importorskip("accelerate", reason="accelerate (extra `quantized`) is not installed")

from continual import Learner
from continual.backbones.backbone import Backbone, load_backbone
from continual.deltas import METHODS, Bank, Delta, attached
from continual.deltas.protocols import to_device_of
from continual.errors import BackboneError, MethodError
from continual.features.pooling import encode
from continual.features.tokens import pad
from tasks import Stream, TaskSpec

# Accelerate's device map: a part on the disk is loaded only while it computes.
MAPS: dict[str, dict[str, str | int]] = {
    "bert": {"embeddings": "cpu", "encoder.layer.0": "disk", "encoder.layer.1": "cpu"},
    "gpt2": {"transformer.wte": "cpu", "transformer.wpe": "disk", "transformer.h.0": "cpu", "transformer.h.1": "disk",
             "transformer.ln_f": "disk", "transformer.drop": "cpu", "lm_head": "cpu"},
    "llama": {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "disk",
              "model.rotary_emb": "cpu", "lm_head": "cpu"},
    "t5": {"shared": "cpu", "encoder": "cpu", "decoder.embed_tokens": "cpu", "decoder.block": "disk",
           "decoder.final_layer_norm": "cpu", "decoder.dropout": "cpu", "lm_head": "cpu"},
}  # fmt: skip
READS_WEIGHTS = {"full", "last_layer", "selective", "diff_pruning", "masking", "dora", "intrinsic"}
READS_WEIGHTS |= {"lora_xs", "tiny_lora", "oft", "boft"}


@pytest.fixture(scope="module", params=MAPS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Backbone, Backbone]:
    """A backbone on one device and its split copy."""
    folder = save_backbone(tiny_backbone(request.param), tmp_path_factory.mktemp(request.param))
    whole = load_backbone(str(folder), device="cpu", dtype="float32")
    return whole, load_backbone(str(folder), device=MAPS[request.param], dtype="float32")


def test_it_is_the_same_backbone(pair: tuple[Backbone, Backbone]) -> None:
    whole, split = pair
    assert (whole.split, split.split) == (False, True)
    assert any(weight.is_meta for weight in split.base_module.parameters()), "nothing is on the disk"
    assert split.fingerprint == whole.fingerprint
    assert split.parameter_count == whole.parameter_count


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_the_same_outputs(pair: tuple[Backbone, Backbone], method: str) -> None:
    """Methods that read a weight which is offloaded to disk are excepted."""
    whole, split = pair
    delta, tokens = perturbed_delta(whole, method), prepared_rows(whole, "mood", 4).tokens
    if method in READS_WEIGHTS and split.family.name != "t5":  # whose encoder is in memory
        with pytest.raises(MethodError, match="on the disk"):
            encode(split, tokens, delta=delta)
        return
    assert torch.equal(encode(split, tokens, delta=delta), encode(whole, tokens, delta=delta))


def test_mixed_batches_have_the_same_outputs(pair: tuple[Backbone, Backbone]) -> None:
    deltas = {name: perturbed_delta(pair[0], name) for name in ("lora", "adapter", "prefix", "prompt")}
    states = [_mixed(backbone, deltas) for backbone in pair]
    assert torch.equal(*states)


@torch.no_grad()
def _mixed(backbone: Backbone, deltas: dict[str, Delta]) -> Tensor:
    bank = Bank(backbone, slots=len(deltas))
    for name, delta in deltas.items():
        bank.put(name, delta)
    order, mixture = bank.mixed_batch([*deltas, None, "lora"])
    batch = pad(backbone, prepared_rows(backbone, "mood", 6).tokens, order)
    with attached(backbone, mixture):
        return backbone.hidden_states(batch)


def test_it_generates_the_same_text(pair: tuple[Backbone, Backbone]) -> None:
    if pair[0].language_model is None:
        pytest.skip("an encoder writes nothing")
    prompts = [(5, 6, 7), (8, 9)]
    whole, spread = (replace(backbone, generates=True) for backbone in pair)
    delta = perturbed_delta(whole, "lora")
    expected = [reference(whole, delta, prompt, max_new_tokens=5, cache=False) for prompt in prompts]
    assert write(spread, delta, prompts, max_new_tokens=5) == write(whole, delta, prompts, max_new_tokens=5) == expected


def test_training_is_refused(pair: tuple[Backbone, Backbone], tmp_path: Path) -> None:
    with Learner(pair[1], _registry(tmp_path)) as learner:
        task = TaskSpec.model_validate(write_task(tmp_path, "mood"))
        stream = Stream(name="s", tasks=(task,), folder=tmp_path)
        for learns in (
            lambda: learner.run(stream),
            lambda: learner.learn(stream),
            lambda: learner.compare(stream),
            lambda: learner.watch(idle=0),
            lambda: learner.migrate(),
        ):
            with pytest.raises(BackboneError, match="split over devices, where it answers and learns nothing"):
                learns()


def _registry(folder: Path) -> Any:
    from continual.settings import resolve_locations
    from registry import Registry

    places = resolve_locations(folder)
    return Registry.open(places.registry, places.blobs)


def test_values_move_to_the_device_of_the_hidden_states() -> None:
    """PyTorch's meta device stands in for a second GPU: it refuses tensors of other devices."""
    backbone = tiny_backbone("llama")
    delta = perturbed_delta(backbone, "lora")
    meta_states = torch.empty(2, 3, backbone.hidden_size, device="meta")
    values = {key.rpartition("/")[2]: value for key, value in delta.values.items() if key.startswith("layer.1.attn.q/")}
    assert to_device_of(values, torch.empty(1)) is values
    moved = to_device_of(values, meta_states)
    assert {value.device.type for value in moved.values()} == {"meta"}
    backbone.model.layers[1].self_attn.q_proj.to("meta")
    with attached(backbone, delta):
        assert backbone.model.layers[1].self_attn.q_proj(meta_states).device.type == "meta"


def test_split_needs_accelerate(bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackboneError, match=r"pip install 'continual-deltas\[quantized\]'"):
        load_backbone(str(bert_folder), device="split")


def test_a_backbone_that_fits_one_device_is_not_split(bert_folder: Path, bert: Backbone) -> None:
    backbone = load_backbone(str(bert_folder), device="split", dtype="float32")
    if torch.cuda.device_count() > 1:
        pytest.skip("there are several devices")
    assert not backbone.split
    assert backbone.fingerprint == bert.fingerprint
