"""Module tables of the model families: each module is reached by exactly one site, and sites act as named."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, ElectraConfig, OPTConfig
from transformers.activations import ACT2FN
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.pytorch_utils import Conv1D

from continual.backbones.backbone import Backbone
from continual.backbones.base_model import base_model
from continual.backbones.families import family_of
from continual.backbones.sites import OUTPUT_EMBEDDINGS, Place
from continual.deltas import METHODS, Add, Edit, Reads, attached, init_values
from continual.deltas.edit import LayerFilter
from continual.deltas.forms import Vector
from continual.errors import MethodError
from continual.features.tokens import pad, tokenize
from tests.conftest import backbone_of
from tests.helpers.tiny_models import TINY_CONFIGS, WRITERS
from tests.helpers.tiny_tasks import delta_of_edits, is_unreached, perturbed_delta, supported_methods, tiny_backbone

TEXTS = ["purr meow", "the awful dull tower of sugar and honey", "wave"]
GROUPS = ("projections", "norms", "embeddings")
# Heads that turn hidden states to words, and the tables of words that the stacks only share the weights of.
NO_SITE = {"lm_head", "shared"}


@pytest.fixture(scope="session", params=TINY_CONFIGS)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    """Return a tiny backbone of every family."""
    return backbone_of(request.param)


@pytest.fixture(scope="session", params=WRITERS)
def writer(request: pytest.FixtureRequest) -> Backbone:
    """Return a tiny backbone of every family with a language model."""
    return replace(backbone_of(request.param), generates=True)


@pytest.fixture
def whole(backbone: Backbone) -> Backbone:
    """Return the backbone with all its places; with those of the decoder where it can generate."""
    return replace(backbone, generates=True)


def batch_of(backbone: Backbone) -> dict[str, Tensor]:
    return pad(backbone, tokenize(backbone, TEXTS, max_length=32), range(len(TEXTS)))


def run(backbone: Backbone) -> Tensor:
    """Run every stack that edits may change once; the last hidden states, or the logits of a language model."""
    batch = batch_of(backbone)
    if not backbone.generates or backbone.family.decoder is None:
        return backbone.hidden_states(batch)
    logits: Tensor = backbone.language_model(**batch, decoder_input_ids=batch["input_ids"], use_cache=False).logits
    return logits


def calls_of(backbone: Backbone, places: list[Place]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return, by place, the input of its first module and the output of its last module in one run."""
    inputs: dict[str, Tensor] = {}
    calls: dict[str, tuple[Tensor, Tensor]] = {}
    undo = []
    for place in places:

        def enter(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], place: Place = place) -> None:
            inputs[place.name] = place.input_of(args, kwargs)

        def leave(module: nn.Module, args: object, output: Tensor, place: Place = place) -> None:
            part = output if place.columns is None else output[..., place.columns]
            calls[place.name] = (inputs[place.name], part.clone())  # a model may add to it in place

        undo += [place.input_module.register_forward_pre_hook(enter, with_kwargs=True)]
        undo += [place.output_module.register_forward_hook(leave)]
    with torch.no_grad():
        run(backbone)
    for handle in undo:
        handle.remove()
    return calls


def test_every_module_is_reached_by_one_site_of_the_groups(whole: Backbone) -> None:
    reached: dict[int, list[tuple[int, int]]] = {}
    for place in (place for group in GROUPS for place in whole.modules_at(group)):
        assert place.input_module is place.output_module
        rows = place.weight.shape[0] if place.columns is None else place.columns.stop
        reached.setdefault(id(place.output_module), []).append((rows - place.weight.shape[0], rows))
    missing = {name for name, module in owners(whole.model).items() if id(module) not in reached}
    assert {name for name in missing if not is_unreached(whole, name)} <= NO_SITE
    for name, module in owners(whole.model).items():
        if name not in missing:
            start, stop = zip(*sorted(reached[id(module)]), strict=True)
            assert (start[0], *stop[:-1]) == start, f"{name} is reached in parts that follow each other"
            assert isinstance(module.weight, Tensor)
            assert stop[-1] == module.weight.shape[1 if isinstance(module, Conv1D) else 0]


def owners(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that have parameters of their own, by name."""
    return {name: module for name, module in model.named_modules() if list(module.parameters(recurse=False))}


def test_the_places_of_the_groups_hold_every_parameter(whole: Backbone) -> None:
    places = {  # tied tables are one
        (id(place.output_module.get_parameter("weight")), str(place.columns)): place
        for group in GROUPS
        for place in whole.modules_at(group)
    }
    reached = sum(place.weight.numel() + (0 if place.bias is None else place.bias.numel()) for place in places.values())
    model = whole.language_model if whole.generates and whole.language_model else whole.model
    modules = [module for name, module in owners(model).items() if not is_unreached(whole, name)]
    parameters = {id(parameter): parameter for module in modules for parameter in module.parameters(recurse=False)}
    assert reached == sum(map(Tensor.numel, parameters.values()))


def test_a_projection_is_its_weight_and_bias(whole: Backbone) -> None:
    places = whole.modules_at("projections")
    calls = calls_of(whole, list(places))
    assert calls.keys() == {place.name for place in places}
    for place in places:
        entered, output = calls[place.name]
        assert (entered.shape[-1], output.shape[-1]) == (place.d_in, place.d_out)
        torch.testing.assert_close(F.linear(entered, place.weight, place.bias), output, rtol=1e-4, atol=1e-5)


def test_an_embedding_is_the_rows_that_enter_it(whole: Backbone) -> None:
    places = [place for place in whole.modules_at("embeddings") if place.site != OUTPUT_EMBEDDINGS]
    calls = calls_of(whole, places)
    for place in places:
        assert place.weight.shape == (place.d_in, place.d_out)
        rows, output = calls[place.name]
        embedded = F.embedding(rows, place.weight) * getattr(place.output_module, "embed_scale", 1.0)
        torch.testing.assert_close(embedded.expand_as(output), output)


def test_a_block_spans_from_its_first_modules_input_to_its_last_modules_output(whole: Backbone) -> None:
    blocks = {"attn": "attn.out", "ffn": "ffn.out"} | ({"cross": "cross.out"} if whole.family.decoder else {})
    for block, last in blocks.items():
        outs = {place.name: place for place in whole.modules_at(last)}
        norm = f"norm.{block}_out"
        norms = whole.modules_at(norm) if norm in whole.family.stack.sites else ()
        ends = {place.name.replace(norm, last): place.output_module for place in norms}
        for place in whole.modules_at(block):
            assert place.d_in == place.d_out == whole.model.config.hidden_size
            if out := outs.get(place.name.replace(block, last)):  # experts have none
                end = ends.get(out.name, out.output_module)
                assert place.output_module is end or out.output_module in place.output_module.modules()


def test_the_input_of_a_gated_feed_forwards_last_module_is_gated(whole: Backbone) -> None:
    config = whole.model.config
    names = ("hidden_act", "activation", "hidden_activation", "activation_function", "dense_act_fn")
    act = ACT2FN[next(value for name in names if (value := getattr(config, name, None)))]
    gated = "ffn.gate" in whole.family.stack.sites
    sites = ["ffn.in", "ffn.out", *(["ffn.gate"] if gated else [])]
    calls = calls_of(whole, [place for site in sites for place in whole.modules_at(site)])
    for place in whole.modules_at("ffn.inner"):
        prefix = place.name.removesuffix("inner")
        inner = act(calls[f"{prefix}gate"][1]) * calls[f"{prefix}in"][1] if gated else act(calls[f"{prefix}in"][1])
        torch.testing.assert_close(inner, calls[f"{prefix}out"][0], rtol=1e-4, atol=1e-5)


def test_attention_receives_the_projected_queries_keys_and_values(
    whole: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, got = whole.family.stack.sites, dict[int, tuple[Tensor, ...]]()
    if missing := {"attn.kv", "attn.q"} - table.keys():
        pytest.skip(whole.family.absent[missing.pop()])

    def attend(module: nn.Module, *args: Any, softcap: float | None = None, **kwargs: Any) -> Any:
        got[id(module)] = tuple(states.transpose(1, 2).flatten(2) for states in args[:3])
        return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("watched", attend)
    AttentionMaskInterface.register("watched", sdpa_mask)
    roles = ["attn", "cross"] if whole.family.decoder else ["attn"]
    for place in whole.modules_at("attn.kv"):
        monkeypatch.setattr(place.output_module.config, "_attn_implementation", "watched")
    sites = {f"{role}.{part}": (role, i) for role in roles for i, part in enumerate("qkv")}
    calls = calls_of(whole, [place for site in sites for place in whole.modules_at(site)])
    normed = {"q", "k"} if "norm.q" in table or getattr(whole.model.config, "use_qk_norm", False) else set()
    for site, (role, i) in sites.items():
        for place, whose in zip(whole.modules_at(site), whole.modules_at(f"{role}.kv"), strict=True):
            projected, states = calls[place.name][1], got[id(whose.output_module)][i]
            if site != "attn.q" or "attn.heads" in table:  # else it makes the output's gate too
                assert projected.shape == states.shape
            if site.endswith(".v"):
                torch.testing.assert_close(states, projected)
            elif site[-1] not in normed:  # at the first position nothing is rotated; OPT scales its queries
                assert F.cosine_similarity(states[:, 0], projected[:, 0], dim=-1).min() > 0.9999


GATED = {
    *("modernbert", "llama", "qwen2", "qwen3", "t5-gated", "mistral", "smollm3", "phi3", "gemma2", "gemma3"),
    *("olmo2", "qwen3_moe", "llama4", "qwen3_5"),
}


def test_gated_feed_forwards_have_a_gate_site(backbone: Backbone) -> None:
    assert ("ffn.gate" in backbone.family.stack.sites) == (backbone.name.removeprefix("tiny-") in GATED)


def test_lora_at_all_projections_is_the_model_with_weights_plus_scaled_ba(whole: Backbone) -> None:
    delta = perturbed_delta(whole, "lora", rank=4, alpha=6.0)
    network = deepcopy(whole.base_module)
    merged = replace(whole, model=base_model(network), language_model=None if whole.language_model is None else network)
    with torch.no_grad():
        for place in merged.modules_at("projections"):
            a, b = (delta.values[f"{place.name}/0/{name}"] for name in "AB")
            place.weight.add_(6.0 / 4 * b @ a)
        expected = run(merged)
        with attached(whole, delta):
            actual = run(whole)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(actual, run(whole), atol=1e-2)


@pytest.mark.parametrize("method", ["lora", "adapter", "bitfit"])
def test_a_task_that_generates_trains_every_value(writer: Backbone, method: str) -> None:
    delta, batch = perturbed_delta(writer, method).trainable(torch.device("cpu")), batch_of(writer)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with attached(writer, delta):
        writer.language_model(**batch, labels=labels).loss.backward()
    still = {key for key, value in delta.values.items() if value.grad is None or value.grad.abs().max() < 1e-7}
    assert {key.rpartition(".")[2].split("/")[0] for key in still} <= {"k"}  # a key's bias moves all scores alike
    assert all(parameter.grad is None for parameter in writer.base_module.parameters())


REFUSED: Mapping[str, set[str]] = {
    "gpt_neox": {"ia3", "multi_head_adapter"},
    "qwen3_5": {"multi_head_adapter"},
    "mpnet": {"prefix", "mam"},
    "deberta-v2": {"prefix", "mam", "multi_head_adapter"},
}


def test_a_method_that_lacks_a_site_is_refused_with_the_reason(backbone: Backbone) -> None:
    refused = METHODS.keys() - supported_methods(backbone)
    assert refused == REFUSED.get(backbone.name.removeprefix("tiny-"), set())
    for name in refused:
        with pytest.raises(MethodError, match=rf"{backbone.family.name!r} has no site .*: (its|the) "):
            init_values(backbone, METHODS[name](), seed=0)


@pytest.mark.parametrize(
    ("kind", "changes"), [("qwen3_moe", {"mlp_only_layers": []}), ("llama4", {"moe_layers": [0, 1, 2]})]
)
def test_a_model_of_experts_alone_has_no_projections_of_a_feed_forward(kind: str, changes: dict[str, Any]) -> None:
    backbone = tiny_backbone(kind, **changes)
    with pytest.raises(MethodError, match=r"no site 'ffn\.out': the weights of its experts are fused tensors"):
        backbone.modules_at("ffn.out")
    assert len(backbone.modules_at("attn.out")) == 3


def test_sites_of_some_layers_are_in_those_layers() -> None:
    def layers(kind: str, site: str) -> list[int | None]:
        return [place.layer for place in tiny_backbone(kind).modules_at(site)]

    assert (layers("qwen3_moe", "ffn"), layers("qwen3_moe", "ffn.out")) == ([0, 1, 2], [1])
    assert (layers("llama4", "ffn.out"), layers("llama4", "shared.out")) == ([0, 2], [1])
    assert (layers("qwen3_5", "attn.q"), layers("qwen3_5", "linear.out")) == ([1], [0])


SEQ2SEQ = ("t5", "t5-gated", "bart", "mt5", "marian", "pegasus")


@pytest.mark.parametrize("kind", SEQ2SEQ)
def test_only_a_task_that_generates_has_places_in_the_decoder(kind: str) -> None:
    reads = tiny_backbone(kind)
    writes = replace(reads, generates=True)
    encoder = [f"layer.{layer}.attn.q" for layer in range(3)]
    decoder = [f"decoder.layer.{layer}.attn.q" for layer in range(2)]
    assert [place.name for place in reads.modules_at("attn.q")] == encoder
    assert [place.name for place in writes.modules_at("self.q")] == encoder + decoder
    assert {place.name for place in writes.modules_at("attn.q")} == {
        *(encoder + decoder),
        *(name.replace("attn", "cross") for name in decoder),
    }
    assert [place.name for place in writes.modules_at("cross.kv")] == [f"decoder.layer.{n}.cross.kv" for n in range(2)]
    assert {place.name for place in reads.modules_at("projections")} < {
        p.name for p in writes.modules_at("projections")
    }
    assert "decoder.layer.1.norm.cross" in {place.name for place in writes.modules_at("norms")}
    assert "decoder.embed.word" in {place.name for place in writes.modules_at("embeddings")}
    with pytest.raises(MethodError, match=r"cross\.q.*decoder.*generates.*attn\.q"):
        reads.modules_at("cross.q")


def test_layers_are_numbered_within_their_stack() -> None:
    writes = replace(tiny_backbone("bart"), generates=True)
    top = delta_of_edits(writes, Edit("ffn.out", Vector(0.0), Reads.OUTPUT, Add(), LayerFilter((-1,))))
    assert set(top.values) == {"layer.2.ffn.out/0/vector", "decoder.layer.1.ffn.out/0/vector"}
    third = delta_of_edits(writes, Edit("ffn.out", Vector(0.0), Reads.OUTPUT, Add(), LayerFilter((2,))))
    assert set(third.values) == {"layer.2.ffn.out/0/vector"}
    with pytest.raises(MethodError, match="0 to 2"):
        delta_of_edits(writes, Edit("ffn.out", Vector(0.0), Reads.OUTPUT, Add(), LayerFilter((3,))))


@pytest.mark.parametrize("kind", SEQ2SEQ)
def test_without_generating_only_the_encoder_runs(kind: str) -> None:
    reads = tiny_backbone(kind)
    batch, before = batch_of(reads), len(list(reads.model.decoder.modules()))
    states = reads.hidden_states(batch)
    reads.model.decoder = nn.Identity()
    assert before > 1
    assert torch.equal(reads.hidden_states(batch), states)


def test_dimensions_follow_the_model() -> None:
    def sizes(kind: str, site: str) -> tuple[int, int]:
        place = tiny_backbone(kind).modules_at(site)[0]
        return place.d_in, place.d_out

    assert sizes("llama", "attn.q") == (32, 32)
    assert sizes("llama", "attn.k") == sizes("llama", "attn.kv") == (32, 16)
    assert sizes("qwen3", "attn.q") == (32, 64)
    assert sizes("qwen3", "norm.k") == (16, 16)
    assert sizes("gpt2", "attn.v") == sizes("gpt2", "attn.kv") == (32, 32)
    assert sizes("modernbert", "ffn.gate") == (32, 48)
    assert sizes("electra", "embed.project") == (24, 32)
    assert sizes("electra", "tokens")[1] == 24
    assert sizes("t5", "embed.distance") == (8, 4)
    assert sizes("phi3", "attn.q") == (32, 32)
    assert sizes("phi3", "attn.v") == sizes("phi3", "attn.kv") == (32, 16)
    assert sizes("olmo2", "norm.k") == (16, 16)
    assert sizes("gpt_neox", "attn.qkv") == (32, 96)
    assert sizes("opt-narrow", "final.project") == (32, 24)
    assert tiny_backbone("opt-narrow").hidden_size == 24


def test_the_lowest_layer_of_modernbert_has_no_norm_before_its_attention() -> None:
    names = [place.name for place in tiny_backbone("modernbert").modules_at("norm.attn")]
    assert names == ["layer.1.norm.attn", "layer.2.norm.attn"]


def test_modules_that_a_configuration_leaves_out_have_no_site() -> None:
    same = family_of(ElectraConfig(embedding_size=32, hidden_size=32))
    assert "embed.project" not in same.stack.sites
    assert "norm.final" not in tiny_backbone("opt-narrow").family.stack.sites
    bare = family_of(OPTConfig(layer_norm_elementwise_affine=False))
    assert not any(site.group == "norms" for site in bare.stack.sites.values())
