"""PEFT folders: exported deltas computed by PEFT, and imported adapters that PEFT wrote."""

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel

from continual.backbones.backbone import Backbone
from continual.deltas import METHODS, Delta, attached, finalize
from continual.errors import ExchangeError
from continual.exchange import from_peft, merge_obstacle, to_peft
from continual.exchange.files import ADAPTER, CONFIG, ExportOrigin, read_adapter, read_head, write_adapter, write_head
from continual.exchange.peft import peft_methods
from continual.features.pooling import pool
from continual.features.tokens import pad, tokenize
from tests.helpers.tiny_tasks import PEFT_SETTINGS, head_of, perturbed_delta, save_backbone, tiny_backbone
from tests.unit.exchange.test_peft_modules import EXPORTS

peft = pytest.importorskip("peft")

TEXTS = ["purr meow", "the awful dull tower of sugar and honey", "wave"]
SOME = ("attn.q", "ffn.out")
SETTINGS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"rank": 3, "alpha": 5.0}),
    "lora at some sites": ("lora", {"rank": 4, "sites": SOME}),
    "rank-stabilised lora": ("lora", {"rank": 3, "alpha": 2.0, "scaling": "rank_stabilized"}),
    "pissa": ("lora", {"rank": 3, "alpha": 5.0, "init": "pissa"}),
    "rank-stabilised pissa": ("lora", {"rank": 2, "init": "pissa", "scaling": "rank_stabilized", "sites": SOME}),
    "dora": ("dora", {"rank": 3}),
    "dora at some sites": ("dora", {"rank": 2, "alpha": 7.0, "sites": SOME}),
    "rank-stabilised dora": ("dora", {"rank": 3, "scaling": "rank_stabilized"}),
    "ia3": ("ia3", {}),
    "prefix": ("prefix", {"length": 5, "shift_positions": True}),
    "prompt": ("prompt", {"length": 5}),
}


def batch_of(backbone: Backbone) -> dict[str, Tensor]:
    return pad(backbone, tokenize(backbone, TEXTS, max_length=32), range(len(TEXTS)))


@torch.no_grad()
def hidden(backbone: Backbone, delta: Delta) -> Tensor:
    batch = batch_of(backbone)
    with attached(backbone, delta):
        return backbone.hidden_states(batch) * batch["attention_mask"][..., None]


@pytest.fixture(params=SETTINGS)
def delta(request: pytest.FixtureRequest, backbone: Backbone) -> Delta:
    method, settings = SETTINGS[request.param]
    return finalize(backbone, perturbed_delta(backbone, method, **settings), stage=0)


def write(folder: Path, backbone: Backbone, delta: Delta) -> Path:
    origin = ExportOrigin(backbone=backbone.fingerprint, delta="mood@1", digest=delta.digest)
    write_adapter(folder, to_peft(backbone, delta), origin)
    write_head(folder, head_of(delta))
    return folder


WITHOUT_PROMPT = {"t5", "t5-gated", "mt5", "bart", "marian", "pegasus"}
WITHOUT_PREFIX = WITHOUT_PROMPT | {
    *("distilbert", "modernbert", "qwen2", "mistral", "gemma2", "gemma3", "llama4", "qwen3_5"),
}
WITHOUT_LORA = {"qwen3_moe"}  # with default sites: PEFT takes a dense feed-forward for experts
WITHOUT = {"prompt": WITHOUT_PROMPT, "prefix": WITHOUT_PREFIX, "lora": WITHOUT_LORA, "dora": WITHOUT_LORA}


def write_or_skip(folder: Path, backbone: Backbone, delta: Delta) -> Path:
    """Write the adapter; where PEFT has none of the method for the family, check the refusal and skip."""
    lacking = WITHOUT.get(delta.method, set())
    if backbone.name.removeprefix("tiny-") not in lacking:
        return write(folder, backbone, delta)
    with pytest.raises(ExchangeError, match="PEFT"):
        to_peft(backbone, delta)
    pytest.skip("PEFT has none for this family")


@torch.no_grad()
def pefts_states(backbone_folder: Path, folder: Path, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the hidden states of PEFT's model at the texts' tokens, zero at padding."""
    model = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(backbone_folder), folder).eval()
    plain = model.get_base_model()
    reader = plain.encoder if plain.config.is_encoder_decoder else model  # the decoder has nothing to read
    states: Tensor = reader(
        **{name: value for name, value in batch.items() if name != "token_type_ids"}
    ).last_hidden_state
    mask = batch["attention_mask"]
    return states[:, -mask.shape[1] :] * mask[..., None]


def test_every_method_of_peft_is_tested() -> None:
    of_linear_layers = {method for method, *_ in EXPORTS.values()}
    assert {method for method, _ in SETTINGS.values()} | of_linear_layers == set(peft_methods())


@pytest.mark.filterwarnings("error::UserWarning")  # as PEFT warns of settings that do not fit
def test_peft_computes_the_same_states_and_the_head_the_same_logits(
    backbone: Backbone, backbone_folder: Path, delta: Delta, tmp_path: Path
) -> None:
    folder, batch = write_or_skip(tmp_path, backbone, delta), batch_of(backbone)
    states, expected = pefts_states(backbone_folder, folder, batch), hidden(backbone, delta)
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)
    about = json.loads((folder / "head.json").read_text())
    assert about == {"labels": list(head_of(delta).labels), "pooling": "mean", "layer": -1}
    head, mask = load_file(folder / "head.safetensors"), batch["attention_mask"]
    logits = F.linear(pool(states, mask, "mean"), head["weight"], head["bias"])
    torch.testing.assert_close(logits, head_of(delta)(pool(expected, mask, "mean")), rtol=1e-4, atol=1e-5)


def test_an_exported_delta_is_imported_unchanged(backbone: Backbone, delta: Delta, tmp_path: Path) -> None:
    adapter, origin = read_adapter(write_or_skip(tmp_path, backbone, delta))
    assert origin == ExportOrigin(backbone=backbone.fingerprint, delta="mood@1", digest=delta.digest)
    method, settings, values = from_peft(backbone, adapter)
    assert method == delta.method
    torch.testing.assert_close(
        hidden(backbone, replace(delta, settings=settings, values=values)), hidden(backbone, delta)
    )
    head = read_head(tmp_path, hidden_size=backbone.hidden_size)
    assert head is not None
    assert head.labels == head_of(delta).labels
    assert torch.equal(head.weight, head_of(delta).weight)


@torch.no_grad()
@pytest.mark.parametrize("method", ["lora", "ia3", "prefix", "prompt"])
def test_peft_computes_the_same_logits_of_a_language_model(
    writer: Backbone, method: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Without a head the language model answers, and edits of its decoder are exported too."""
    delta = replace(perturbed_delta(writer, method, **PEFT_SETTINGS.get(method, {})), head=None)
    plain = save_backbone(writer, tmp_path_factory.mktemp("plain"))
    family = writer.name.removeprefix("tiny-")
    if family in WITHOUT.get(method, set()):
        with pytest.raises(ExchangeError):
            to_peft(writer, delta)
        pytest.skip("PEFT has none for this family")
    write_adapter(tmp_path, to_peft(writer, delta), ExportOrigin(backbone=writer.fingerprint, delta="a@1", digest=""))
    model = peft.PeftModel.from_pretrained(type(writer.language_model).from_pretrained(plain), tmp_path).eval()
    batch = batch_of(writer) | ({"decoder_input_ids": batch_of(writer)["input_ids"]} if writer.family.decoder else {})
    with attached(writer, delta):
        expected = writer.language_model(**batch).logits
    actual, mask = model(**batch).logits[:, -expected.shape[1] :], batch["attention_mask"][..., None]
    torch.testing.assert_close(actual * mask, expected * mask, rtol=1e-3, atol=1e-4)
    _, settings, values = from_peft(writer, read_adapter(tmp_path)[0])
    with attached(writer, replace(delta, settings=settings, values=values)):
        torch.testing.assert_close(writer.language_model(**batch).logits * mask, expected * mask, rtol=1e-3, atol=1e-4)


ROTARY: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen3": ("qwen3", {}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "yarn": ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}),
}


@pytest.mark.parametrize("name", ROTARY)
def test_a_prefix_before_rotary_positions_that_begin_at_0_is_exported_with_rotated_keys(
    name: str, tmp_path: Path
) -> None:
    family, changes = ROTARY[name]
    backbone = tiny_backbone(family, **changes)
    delta = perturbed_delta(backbone, "prefix", length=5)
    folder, batch, expected = tmp_path / "adapter", batch_of(backbone), hidden(backbone, delta)
    folder.mkdir()
    states = pefts_states(save_backbone(backbone, tmp_path / "plain"), write(folder, backbone, delta), batch)
    assert (states - expected).abs().max() < 1e-5 * expected.abs().max()
    _, settings, values = from_peft(backbone, read_adapter(folder)[0])
    again = hidden(backbone, replace(delta, settings=settings, values=values))
    assert (again - expected).abs().max() < 1e-5 * expected.abs().max()


DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}


@pytest.mark.parametrize(("family", "changes"), [("bert", {}), ("gpt2", {}), ("opt", {}), ("llama", DYNAMIC)])
def test_a_prefix_before_other_positions_that_begin_at_0_is_refused(family: str, changes: dict[str, Any]) -> None:
    backbone = tiny_backbone(family, **changes)
    with pytest.raises(ExchangeError, match="fixed angles; learn the prefix with shift_positions: true"):
        to_peft(backbone, perturbed_delta(backbone, "prefix", length=5))


def test_equal_deltas_give_equal_files(bert: Backbone, tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in ("first", "second"))
    for folder in (first, second):
        folder.mkdir()
        write(folder, bert, perturbed_delta(bert, "lora"))
    assert {file.name: file.read_bytes() for file in first.iterdir()} == {
        file.name: file.read_bytes() for file in second.iterdir()
    }


@pytest.mark.parametrize("method", sorted(METHODS.keys() - peft_methods().keys()))
def test_a_method_without_peft_format_is_refused_naming_the_others(bert: Backbone, method: str) -> None:
    delta = perturbed_delta(bert, method)
    remedy = (
        "No plain model .*, since its edit at" if merge_obstacle(delta.settings) else "--format transformers writes"
    )
    with pytest.raises(ExchangeError, match=f"lora, dora.*{remedy}"):
        to_peft(bert, delta)


CONFIGS: Mapping[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(r=3, lora_alpha=7, target_modules=["query", "value"]),
    "rslora": lambda: peft.LoraConfig(r=4, use_rslora=True, target_modules=["query", "value"]),
    "patterns": lambda: peft.LoraConfig(
        r=4,
        target_modules=["query", "output.dense"],
        rank_pattern={"query": 2},
        alpha_pattern={"attention.output.dense": 3},
    ),
    "dora": lambda: peft.LoraConfig(r=2, use_dora=True, target_modules="all-linear"),
    "ia3": lambda: peft.IA3Config(
        target_modules=r".*(key|value|\d\.output\.dense)", feedforward_modules=r".*\d\.output\.dense"
    ),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="FEATURE_EXTRACTION"),
    "projected prefix": lambda: peft.PrefixTuningConfig(
        num_virtual_tokens=3, task_type="FEATURE_EXTRACTION", prefix_projection=True, encoder_hidden_size=8
    ),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=3, task_type="FEATURE_EXTRACTION"),
}


def pefts_own(backbone: Backbone, folder: Path, config: Any) -> Path:
    """Write a folder with PEFT of an adapter whose every value differs from its initial one."""
    model = peft.get_peft_model(deepcopy(backbone.model), config)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("config", CONFIGS)
def test_an_adapter_saved_by_peft_computes_the_same(
    bertlike: Backbone, config: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    backbone, backbone_folder = bertlike, save_backbone(bertlike, tmp_path_factory.mktemp("plain"))
    adapter, origin = read_adapter(pefts_own(backbone, tmp_path, CONFIGS[config]()))
    assert origin is None
    method, settings, values = from_peft(backbone, adapter)
    delta = replace(perturbed_delta(backbone, method), settings=settings, values=values)
    expected = pefts_states(backbone_folder, tmp_path, batch_of(backbone))
    torch.testing.assert_close(hidden(backbone, delta), expected, rtol=1e-4, atol=1e-5)


def written(backbone: Backbone, folder: Path) -> Path:
    return pefts_own(backbone, folder, CONFIGS["lora"]())


def import_of(backbone: Backbone, folder: Path) -> None:
    from_peft(backbone, read_adapter(folder)[0])


def with_tensors(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(folder / ADAPTER)), folder / ADAPTER)


def with_settings(folder: Path, **changes: Any) -> None:
    (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | changes))


KEY = "base_model.model.encoder.layer.1.attention.self.query.lora_A.weight"
Spoil = Callable[[Path], object]
SPOILED: Mapping[str, tuple[Spoil, str]] = {
    "a tensor too few": (
        lambda folder: with_tensors(folder, lambda tensors: {key: tensors[key] for key in tensors if key != KEY}),
        rf"1 tensors.*\n  missing: {KEY} \[3, 32\]",
    ),
    "a tensor too many": (
        lambda folder: with_tensors(
            folder,
            lambda tensors: tensors | {"base_model.model.encoder.layer.2.output.dense.weight": torch.ones(2, 32)},
        ),
        r"of no place: base_model\.model\.encoder\.layer\.2\.output\.dense\.weight .*a weight saved as a whole",
    ),
    "another rank": (
        lambda folder: with_settings(folder, r=5),
        r"8 tensors.*\n  other shape: .*\[3, 32\], not \[5, 32\]",
    ),
    "another width": (
        lambda folder: with_tensors(folder, lambda tensors: tensors | {KEY: torch.ones(3, 64)}),
        r"other shape: .*\[3, 64\], not \[3, 32\]",
    ),
    "no module of this model": (
        lambda folder: with_tensors(
            folder, lambda tensors: {key.replace("encoder", "h"): tensors[key] for key in tensors}
        ),
        r"no tensor .* is of a projection",
    ),
    "no number": (
        lambda folder: with_tensors(folder, lambda tensors: tensors | {KEY: torch.full((3, 32), torch.nan)}),
        "values that are not finite",
    ),
    "another method": (lambda folder: with_settings(folder, peft_type="ROAD"), "'ROAD'.*can be imported: .*lora, dora"),
    "a variant": (lambda folder: with_settings(folder, use_qalora=True), "not supported: {'use_qalora': True}"),
    "a start that moved the base": (lambda folder: with_settings(folder, init_lora_weights="pissa"), "'pissa'"),
    "a rank of no kind": (
        lambda folder: with_settings(folder, r="many"),
        "cannot be read: r: Input should be a valid integer",
    ),
    "no rank": (lambda folder: with_settings(folder, r=None), "r of LORA missing"),
    "no JSON": (lambda folder: (folder / CONFIG).write_text("{"), "adapter_config.json cannot be read"),
    "a list": (lambda folder: (folder / CONFIG).write_text("[]"), "no JSON object"),
    "no settings": (lambda folder: (folder / CONFIG).unlink(), "adapter_config.json cannot be read"),
    "no tensors": (lambda folder: (folder / ADAPTER).write_bytes(b"x"), "adapter_model.safetensors cannot be read"),
    "a pickle": (lambda folder: (folder / ADAPTER).rename(folder / "adapter_model.bin"), "is a pickle"),
}


@pytest.mark.parametrize("spoiled", SPOILED)
def test_an_incompatible_folder_is_refused_with_the_reason(bert: Backbone, spoiled: str, tmp_path: Path) -> None:
    spoil, message = SPOILED[spoiled]
    folder = written(bert, tmp_path)
    import_of(bert, folder)
    spoil(folder)
    with pytest.raises(ExchangeError, match=message):
        import_of(bert, folder)


def test_factors_of_some_layers_only_are_refused(bert: Backbone, tmp_path: Path) -> None:
    folder = pefts_own(bert, tmp_path, peft.IA3Config(target_modules=["key", "value"], feedforward_modules=[]))
    with pytest.raises(ExchangeError, match=r"2 tensors.*\n  missing: .*output\.dense\.ia3_l \[1, 48\]"):
        import_of(bert, folder)


HEADS: Mapping[str, tuple[dict[str, Any], str]] = {
    "labels": ({"labels": ["bad"]}, r"head of the 1 labels"),
    "twice": ({"labels": ["bad", "bad"]}, "each once"),
    "pooling": ({"pooling": "max"}, r"head\.json cannot be read"),
    "layer": ({"layer": -2}, r"head\.json cannot be read"),
}


@pytest.mark.parametrize("spoiled", HEADS)
def test_an_incompatible_head_is_refused(bert: Backbone, spoiled: str, tmp_path: Path) -> None:
    changes, message = HEADS[spoiled]
    file = write(tmp_path, bert, perturbed_delta(bert, "lora")) / "head.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ExchangeError, match=message):
        read_head(tmp_path, hidden_size=32)


def test_an_incomplete_head_is_refused_and_a_missing_one_is_none(bert: Backbone, tmp_path: Path) -> None:
    write(tmp_path, bert, perturbed_delta(bert, "lora"))
    (tmp_path / "head.safetensors").unlink()
    with pytest.raises(ExchangeError, match=r"head\.safetensors cannot be read"):
        read_head(tmp_path, hidden_size=32)
    (tmp_path / "head.json").unlink()
    assert read_head(tmp_path, hidden_size=32) is None
