"""Every combination of PEFT's LoRA settings: adapters that PEFT built, imported and compared with PEFT's own states."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertModel

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, attached
from continual.deltas.peft_format import PeftAdapter
from continual.errors import ExchangeError
from continual.exchange import from_peft
from continual.exchange.files import read_adapter
from continual.exchange.unreached import DECODER, HEAD, POOLER, split_adapter
from tests.helpers.parity import batch_of
from tests.helpers.tiny_tasks import fresh_delta, tiny_backbone

peft: Any = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore:You have passed exclude_modules")

QUERY = "encoder.layer.0.attention.self.query"
PATTERNS: Mapping[str, dict[str, Any]] = {
    "none": {},
    "ranks": {"rank_pattern": {"query": 2}},
    "scales": {"alpha_pattern": {"layer.1.attention.self.query": 32}},
    "both": {"rank_pattern": {"query": 2}, "alpha_pattern": {"layer.0.attention.self.query": 32}},
    "the first of two": {  # in the order of the alphabet, in which PEFT saves them
        "rank_pattern": {"attention.output.dense": 5, "dense": 3, "query": 2},
        "alpha_pattern": {f"^{QUERY}": 9, "dense": 1, "query": 3},
    },
}
WHERE: Mapping[str, dict[str, Any]] = {
    "everywhere": {"target_modules": ["query", "value", "output.dense"]},
    "one layer": {"target_modules": ["query", "output.dense"], "layers_to_transform": [1], "layers_pattern": "layer"},
    "one layer by its number": {"target_modules": ["query", "value"], "layers_to_transform": 0},
    "with exclusions": {
        "target_modules": ["query", "value", "output.dense"],
        "exclude_modules": ["attention.output.dense"],
    },
    "by expressions": {"target_modules": r".*(query|dense)", "exclude_modules": r"encoder\.layer\.0\..*"},
    "all linear": {"target_modules": "all-linear"},
}
COMBINATIONS = list(product(PATTERNS, WHERE, (False, True), (False, True)))


def built(model: Any, **settings: Any) -> Any:
    """Return PEFT's model of a LoRA whose every value differs from its initial one."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 7, **settings})).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in (p for p in wrapped.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return wrapped


def saved(wrapped: Any, folder: Path, **options: Any) -> PeftAdapter:
    wrapped.save_pretrained(folder, **options)
    return read_adapter(folder)[0]


def imported(backbone: Backbone, adapter: PeftAdapter) -> Delta:
    method, settings, values = from_peft(backbone, adapter)
    return replace(fresh_delta(backbone, "probe"), method=method, settings=settings, values=values)


@torch.no_grad()
def own_states(backbone: Backbone, delta: Delta) -> Tensor:
    batch = batch_of(backbone)
    with attached(backbone, delta):
        return backbone.hidden_states(batch) * batch["attention_mask"][..., None]


@torch.no_grad()
def assert_same_states(backbone: Backbone, delta: Delta, wrapped: Any) -> None:
    """Compare with the states of the plain model within PEFT's."""
    batch = batch_of(backbone)
    plain = wrapped.get_base_model().base_model
    states = (plain.encoder if backbone.family.decoder else plain)(**batch).last_hidden_state
    expected = states * batch["attention_mask"][..., None]
    torch.testing.assert_close(own_states(backbone, delta), expected, rtol=1e-4, atol=1e-5)
    assert (expected - own_states(backbone, fresh_delta(backbone, "probe"))).abs().max() > 1e-3


@pytest.mark.parametrize(("patterns", "where", "rslora", "dora"), COMBINATIONS, ids=lambda value: str(value))
def test_every_combination_of_settings_computes_pefts_states(
    bert: Backbone, patterns: str, where: str, *, rslora: bool, dora: bool, tmp_path: Path
) -> None:
    settings = {**PATTERNS[patterns], **WHERE[where], "use_rslora": rslora, "use_dora": dora}
    wrapped = built(deepcopy(bert.model), **settings)
    delta = imported(bert, saved(wrapped, tmp_path))
    loaded = peft.PeftModel.from_pretrained(deepcopy(bert.model), tmp_path).eval()
    assert delta.method == ("dora" if dora else "lora")
    assert delta.settings.model_dump()["scaling"] == ("rank_stabilized" if rslora else "standard")
    assert_same_states(bert, delta, loaded)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5", "modernbert", "bart"])
def test_patterns_and_layers_of_other_families(kind: str, *, dora: bool, tmp_path: Path) -> None:
    """Fused projections (GPT-2, ModernBERT) and encoder-decoders, whose decoders an answer by a head does not run."""
    backbone = tiny_backbone(kind)
    targets = {
        "gpt2": (["c_attn", "mlp.c_proj"], "c_attn"),
        "llama": (["q_proj", "down_proj"], "q_proj"),
        "t5": (["q", "wo"], "q"),
        "modernbert": (["Wqkv", "mlp.Wo"], "Wqkv"),
        "bart": (["q_proj", "fc2"], "q_proj"),
    }
    names, first = targets[kind]
    wrapped = built(
        deepcopy(backbone.base_module),
        target_modules=names,
        layers_to_transform=[1],
        layers_pattern=["layers", "layer", "block", "h"],
        rank_pattern={first: 2},
        alpha_pattern={names[1]: 3},
        use_rslora=True,
        use_dora=dora,
        fan_in_fan_out=kind == "gpt2",
    )
    adapter = saved(wrapped, tmp_path)
    assert_same_states(backbone, imported(backbone, adapter), wrapped)
    assert set(split_adapter(backbone, adapter).unreached) == ({DECODER} if backbone.family.decoder else set())


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", "mica"])
def test_a_start_that_leaves_the_base_alone_is_taken(bert: Backbone, start: Any, tmp_path: Path) -> None:
    wrapped = built(deepcopy(bert.model), target_modules=["query", "value"], init_lora_weights=start)
    adapter = saved(wrapped, tmp_path)
    assert adapter.config["init_lora_weights"] == start
    assert_same_states(bert, imported(bert, adapter), wrapped)


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        ("pissa", "changed the weights of the base"),
        ("pissa_niter_4", "changed the weights of the base"),
        ("olora", "changed the weights of the base"),
        ("corda", "changed the weights of the base"),
        ("loftq", "changed the weights of the base"),
        ("lora_ga", "changed the weights of the base"),
        ("next_year", "is not known"),
    ],
)
def test_a_start_that_changes_the_base_is_refused(bert: Backbone, start: str, reason: str, tmp_path: Path) -> None:
    adapter = saved(built(deepcopy(bert.model), target_modules=["query"]), tmp_path)
    config = {**adapter.config, "init_lora_weights": start, f"{start}_config": {"bits": 4}}
    with pytest.raises(ExchangeError, match=rf"init_lora_weights '{start}', {reason}.*allowed: .*mica.*plain LoRA"):
        from_peft(bert, replace(adapter, config=config))


@pytest.mark.parametrize("rslora", [False, True])
def test_pissa_that_peft_converted_to_lora_is_taken(bert: Backbone, tmp_path: Path, *, rslora: bool) -> None:
    model = peft.get_peft_model(
        deepcopy(bert.model),
        peft.LoraConfig(r=4, lora_alpha=7, target_modules=["query"], init_lora_weights="pissa", use_rslora=rslora),
    )
    model.peft_config["default"].init_lora_weights = True  # or it would be decomposed once more when it is loaded
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn_like(parameter))
    adapter = saved(model.eval(), tmp_path / "out", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    delta = imported(bert, adapter)
    assert delta.settings.model_dump()["rank"] == 8
    assert_same_states(bert, delta, model)


CONFIGS: list[dict[str, Any]] = [
    *WHERE.values(),
    {"target_modules": [QUERY, "key"], "layers_to_transform": [1]},
    {"target_modules": ["query"], "layers_to_transform": [0, 1], "layers_pattern": ["blocks", "layer"]},
    {"target_modules": ["query"], "layers_to_transform": []},
    {"target_modules": ["query"], "layers_to_transform": [1], "layers_pattern": ["blocks"]},
    {"target_modules": ["dense"], "modules_to_save": ["output"]},
    {"target_modules": ["query"], "exclude_modules": [QUERY]},
    {"target_modules": ["ery"]},
]


@pytest.mark.parametrize("settings", CONFIGS, ids=str)
def test_target_modules_are_those_of_peft(bert: Backbone, settings: dict[str, Any]) -> None:
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists

    config = _maybe_include_all_linear_layers(peft.LoraConfig(**settings), bert.model)
    names = [name for name, module in bert.model.named_modules() if isinstance(module, torch.nn.Linear)]
    expected = {name for name in names if check_target_module_exists(config, name)}
    assert {name for name in names if PeftAdapter(settings, {}).targets(name)} == expected


def test_an_adapter_that_targets_modules_which_it_lacks_is_refused(bert: Backbone, tmp_path: Path) -> None:
    """As one of a model of the same family with fewer layers."""
    adapter = saved(built(tiny_backbone("bert", num_hidden_layers=1).model, target_modules=["query"]), tmp_path)
    with pytest.raises(ExchangeError, match=r"2 tensors.*\n  missing: .*layer\.1\.attention\.self\.query\.lora_A"):
        from_peft(bert, adapter)


def with_pooler(bert: Backbone) -> Any:
    model = BertModel(bert.model.config)
    model.load_state_dict(bert.model.state_dict(), strict=False)
    return model


def test_a_pooler_is_left_out_and_named(bert: Backbone, tmp_path: Path) -> None:
    wrapped = built(with_pooler(bert), target_modules="all-linear")
    adapter = saved(wrapped, tmp_path)
    assert split_adapter(bert, adapter).unreached == {POOLER: ("pooler.dense",)}
    assert_same_states(bert, imported(bert, adapter), wrapped)


@pytest.mark.parametrize(
    "kind", ["bert", "roberta", "distilbert", "electra", "modernbert", "gpt2", "opt", "llama", "t5", "bart"]
)
def test_adapters_of_sequence_classifiers_change_the_same_states(kind: str, tmp_path: Path) -> None:
    backbone = tiny_backbone(kind)
    model = AutoModelForSequenceClassification.from_config(backbone.model.config)
    model.base_model.load_state_dict(backbone.model.state_dict(), strict=False)
    targets = ["q_lin", "lin2"] if kind == "distilbert" else "all-linear"  # on which PEFT itself fails there
    wrapped = built(model, target_modules=targets, task_type="SEQ_CLS", fan_in_fan_out=kind == "gpt2")
    adapter = saved(wrapped, tmp_path)
    split = split_adapter(backbone, adapter)
    assert HEAD in split.unreached or kind in ("t5", "bart")
    assert_same_states(backbone, imported(backbone, adapter), wrapped)


def changed_embedding(folder: Path, bert: Backbone) -> PeftAdapter:
    return saved(
        built(deepcopy(bert.model), target_modules=["query", "word_embeddings"]), folder, save_embedding_layers=False
    )


def changed_biases(folder: Path, bert: Backbone) -> PeftAdapter:
    return saved(built(deepcopy(bert.model), target_modules=["query"], bias="lora_only"), folder)


def saved_module(folder: Path, bert: Backbone) -> PeftAdapter:
    return saved(built(deepcopy(bert.model), target_modules=["query"], modules_to_save=["embeddings"]), folder)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (changed_embedding, "a low-rank change of an embedding"),
        (changed_biases, "a bias of the base"),
        (saved_module, "a weight saved as a whole"),
    ],
)
def test_a_change_that_lora_has_no_place_for_is_refused_by_its_name(
    bert: Backbone, make: Any, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ExchangeError, match=rf"of no place: .*\({reason}\)"):
        from_peft(bert, make(tmp_path, bert))
