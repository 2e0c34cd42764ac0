"""Loading backbones: fingerprints of the content, not the path, and refusals that name the remedy."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5EncoderModel

from continual.backbones.backbone import Backbone, freeze, load_backbone
from continual.backbones.base_model import base_model
from continual.backbones.devices import resolve_device, resolve_dtype
from continual.backbones.fingerprint import fingerprint
from continual.errors import BackboneError
from continual.features.pooling import encode
from continual.features.tokens import pad, tokenize
from tasks import Text
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tiny_tasks import tiny_backbone


@pytest.fixture
def folder(bert_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny BERT's folder, to be damaged."""
    return Path(shutil.copytree(bert_folder, tmp_path / "copy"))


def states_of(backbone: Backbone) -> Tensor:
    return backbone.hidden_states(pad(backbone, tokenize(backbone, ["purr meow", "wave"], max_length=32), [0, 1]))


def load(folder: Path | str, **options: str) -> Backbone:
    settings: dict[str, Any] = {"device": "cpu", "dtype": "float32"} | options
    return load_backbone(str(folder), **settings)


def test_a_folder_is_the_model_that_was_saved(backbone: Backbone, backbone_folder: Path) -> None:
    loaded = load(backbone_folder)
    assert loaded.fingerprint == backbone.fingerprint
    assert (loaded.family.name, loaded.hidden_size) == (backbone.family.name, backbone.hidden_size)
    assert (loaded.language_model is None) == (loaded.architecture == "encoder")
    assert loaded.parameter_count == backbone.parameter_count
    assert loaded.longest_input == backbone.longest_input
    texts: list[Text] = ["purr meow", ("wave", "tide"), ""]
    expected = encode(backbone, tokenize(backbone, texts, max_length=32))
    assert torch.equal(encode(loaded, tokenize(loaded, texts, max_length=32)), expected)


def test_a_backbone_is_frozen_and_in_eval_mode(backbone_folder: Path) -> None:
    model = load(backbone_folder).model
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


def test_the_fingerprint_covers_content_not_path_or_dtype(bert_folder: Path, folder: Path) -> None:
    first = load(bert_folder)
    assert len(first.fingerprint) == 64
    assert load(folder, dtype="bfloat16").fingerprint == first.fingerprint
    assert load(f"{folder}/../copy/").fingerprint == first.fingerprint
    assert fingerprint(first.model) == first.fingerprint


def test_the_fingerprint_does_not_depend_on_the_saving_library(bert_folder: Path, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"transformers_version": "4.0.0", "architectures": ["BertForMaskedLM"], "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    assert load(folder).fingerprint == load(bert_folder).fingerprint


def test_one_changed_weight_or_setting_changes_the_fingerprint(bert: Backbone, bert_folder: Path, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[-1]
    weights[name].view(-1)[-1] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load(folder).fingerprint != bert.fingerprint
    shutil.copy(bert_folder / "model.safetensors", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-3}))
    assert load(folder).fingerprint != bert.fingerprint
    assert tiny_backbone("bert", seed=1).fingerprint != bert.fingerprint


def test_matrices_have_the_compute_dtype_and_vectors_float32(bert_folder: Path) -> None:
    low = load(bert_folder, dtype="bfloat16")
    dtypes = {(parameter.dim(), parameter.dtype) for parameter in low.model.parameters()}
    assert dtypes == {(1, torch.float32), (2, torch.bfloat16)}
    tokens = tokenize(low, ["purr meow"], max_length=32)
    exact = encode(load(bert_folder), tokens)
    assert not torch.equal(encode(low, tokens), exact)
    torch.testing.assert_close(encode(low, tokens), exact, rtol=0.05, atol=0.05)


def test_pooling_is_what_the_folder_declares(folder: Path) -> None:
    assert load(folder).pooling == "mean"
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert load(folder).pooling == "cls"


def refused(folder: Path | str, *messages: str) -> None:
    with pytest.raises(BackboneError) as caught:
        load(folder)
    for part in (str(folder), *messages):
        assert part in str(caught.value)


def test_missing_weights_are_refused_by_name(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.attention.self.query.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "encoder.layer.1.attention.self.query.weight")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(folder: Path, value: float) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.attention.self.query.weight"][0, :3] = value
    weights["encoder.layer.0.output.dense.bias"][0] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "3 in encoder.layer.1.attention.self.query.weight", "1 in encoder.layer.0.output.dense.bias")


def test_pickled_weights_are_never_read(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(folder, "safetensors")


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    refused(folder)


def test_broken_weights_are_refused(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    refused(folder)


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    for file in [*folder.glob("tokenizer*"), *folder.glob("vocab*"), *folder.glob("special*")]:
        file.unlink()
    refused(folder, "tokenizer")


def test_an_invalid_json_config_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    refused(folder)


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("tokenizer_config.json", {"cls_token": ["[CLS]"]}),
        ("tokenizer.json", {"post_processor": {"type": "Odd"}}),
        ("config.json", {"hidden_size": "wide"}),
        ("config.json", {"num_hidden_layers": None}),
        ("config.json", {"hidden_act": ["gelu"]}),
        ("config.json", {"pad_token_id": 10**9}),
    ],
)
def test_values_of_other_types_are_refused(folder: Path, file: str, changed: dict[str, Any]) -> None:
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changed))
    refused(folder)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "config.json")


@pytest.mark.parametrize("model_type", ["bloom", "no-such-type"])
def test_an_unknown_family_is_refused(folder: Path, model_type: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(BackboneError, match=model_type):
        load(folder)


def test_an_unknown_hub_id_offline_is_refused_with_the_alternatives() -> None:
    refused("nobody/no-such-model-at-all", "folder", "hub id")


def test_minilm_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path), raising=False)
    with pytest.raises(BackboneError, match=r"continual-deltas\[minilm\]"):
        load("minilm")


@pytest.mark.parametrize("device", ["tpu", "cuda:99" if not torch.cuda.is_available() else "mps", "", "CPU"])
def test_an_unknown_device_is_refused_naming_the_valid_ones(device: str) -> None:
    with pytest.raises(BackboneError, match="auto, cpu, cuda"):
        resolve_device(device)


def test_an_unknown_dtype_is_refused_naming_the_valid_ones() -> None:
    with pytest.raises(BackboneError, match=r"float16.*auto, float32, bfloat16"):
        resolve_dtype("float16", torch.device("cpu"))


def test_auto_is_the_machines_accelerator() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_dtype("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)


def test_freezing_refuses_a_family_without_sites() -> None:
    model, tokenizer = tiny_model("bert")
    model.config.model_type = "bloom"
    with pytest.raises(BackboneError, match=r"bloom.*bert"):
        freeze(model, tokenizer, name="x", device="cpu", dtype="float32")


def test_a_language_model_is_its_base_model_with_the_same_weights(backbone: Backbone) -> None:
    assert backbone.architecture == backbone.family.architecture
    if backbone.architecture == "encoder":
        assert backbone.language_model is None
        assert backbone.base_module is backbone.model
    else:
        assert backbone.model is base_model(backbone.language_model)
        assert backbone.base_module is backbone.language_model
        assert backbone.parameter_count == sum(parameter.numel() for parameter in backbone.language_model.parameters())
    assert states_of(backbone).shape[-1] == backbone.hidden_size


@pytest.mark.parametrize("kind", ["gpt2", "opt-narrow", "llama", "bart"])
def test_a_base_model_alone_is_a_backbone_without_generation(kind: str) -> None:
    backbone = tiny_backbone(kind)
    alone = freeze(deepcopy(backbone.model), backbone.tokenizer, name="base", device="cpu", dtype="float32")
    assert alone.language_model is None
    assert alone.fingerprint != backbone.fingerprint
    assert torch.equal(states_of(alone), states_of(backbone))


def test_t5s_encoder_alone_is_a_backbone_without_generation() -> None:
    t5 = tiny_backbone("t5")
    encoder = T5EncoderModel(t5.model.config)
    encoder.load_state_dict(t5.model.state_dict(), strict=False)
    alone = freeze(encoder, t5.tokenizer, name="encoder", device="cpu", dtype="float32")
    assert alone.language_model is None
    assert torch.equal(states_of(alone), states_of(t5))


def test_a_tokenizer_without_padding_pads_with_its_end() -> None:
    gpt2 = tiny_backbone("gpt2")
    assert gpt2.tokenizer.pad_token == gpt2.tokenizer.eos_token == "<|endoftext|>"
    tokens = tokenize(gpt2, ["", "wave"], max_length=8)
    assert tokens.ids[0] == (gpt2.tokenizer.eos_token_id,), "an empty text has a state too"


def test_a_tokenizer_without_any_padding_candidate_is_refused() -> None:
    gpt2 = tiny_backbone("gpt2")
    gpt2.tokenizer.pad_token = gpt2.tokenizer.eos_token = None
    with pytest.raises(BackboneError, match="pad_token"):
        freeze(gpt2.language_model, gpt2.tokenizer, name="mute", device="cpu", dtype="float32")


def test_the_longest_input_of_relative_positions_is_the_tokenizers_or_a_large_one() -> None:
    t5 = tiny_backbone("t5")
    t5.tokenizer.model_max_length = 512
    assert t5.longest_input == 512
    t5.tokenizer.model_max_length = 10**30
    assert t5.longest_input == 8192


def test_minilm_is_a_frozen_bert_of_384(minilm: Backbone) -> None:
    assert (minilm.family.name, minilm.hidden_size, minilm.pooling, minilm.longest_input) == ("bert", 384, "mean", 512)
    assert [len(minilm.modules_at(site)) for site in ("norm.embed", "attn.q", "ffn.out")] == [1, 6, 6]
