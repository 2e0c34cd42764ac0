"""PEFT's methods of linear layers: exported deltas computed by PEFT, and its own adapters with their settings."""

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

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, attached
from continual.deltas.values import check_compatible
from continual.errors import ExchangeError
from continual.exchange import from_peft, to_peft
from continual.exchange.files import ADAPTER, CONFIG, ExportOrigin, read_adapter, write_adapter
from tests.helpers.parity import batch_of
from tests.helpers.tiny_tasks import fresh_delta, perturbed_delta, tiny_backbone

peft: Any = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of PEFT: settings that it adapts, extensions it lacks

FAMILIES = ("bert", "gpt2", "llama", "t5")
OUT = ("attn.out", "ffn.out")  # modules of their own in every family
# By a name, the method, its settings, and the families on which PEFT has no equal of it.
EXPORTS: Mapping[str, tuple[str, dict[str, Any], str]] = {
    "ada_lora": ("ada_lora", {"rank": 3, "alpha": 5.0}, ""),
    "ada_lora at sites": ("ada_lora", {"rank": 2, "sites": ("attn.q", "ffn.out")}, ""),
    "loha": ("loha", {"rank": 3, "alpha": 5.0}, "gpt2"),
    "lokr": ("lokr", {"rank": 2, "alpha": 5.0}, "gpt2"),
    "lokr of both": ("lokr", {"rank": 1, "factor": 4, "decompose_both": True, "sites": OUT}, "gpt2"),
    "oft": ("oft", {"block_size": 8}, "gpt2"),
    "oft of another block": ("oft", {"block_size": 20}, "gpt2"),
    "oft by series": ("oft", {"block_size": 4, "series": 4}, "gpt2"),
    "boft": ("boft", {"block_size": 4, "factors": 1}, "gpt2"),
    "fourier_ft": ("fourier_ft", {"frequencies": 20, "scale": 5.0, "sites": OUT}, ""),
    "fourier_ft of all": ("fourier_ft", {"frequencies": 1300, "scale": 5.0, "sites": OUT}, ""),
    "vera": ("vera", {"rank": 6}, ""),
    "vera at sites": ("vera", {"rank": 6, "sites": ("attn.v", "ffn.out")}, ""),
    "stored vera": ("vera", {"rank": 6, "projections": "stored", "sites": ("attn.v", "ffn.out")}, ""),
    "tiny_lora": ("tiny_lora", {"rank": 2, "dimension": 5}, ""),
    "tiny_lora at sites": ("tiny_lora", {"rank": 3, "dimension": 5, "sites": ("attn.v", "ffn.out")}, ""),
}
CASES = [(name, family) for name, (*_, without) in EXPORTS.items() for family in FAMILIES if family not in without]


@pytest.fixture(autouse=True)
def without_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep PEFT from building BOFT's CUDA extension, which it tries for every layer."""
    monkeypatch.setattr(peft.tuners.boft.layer, "get_fbd_cuda", lambda: None)


@torch.no_grad()
def states(backbone: Backbone, delta: Delta) -> Tensor:
    batch = batch_of(backbone)
    with attached(backbone, delta):
        return backbone.hidden_states(batch) * batch["attention_mask"][..., None]


@torch.no_grad()
def states_of(backbone: Backbone, model: Any) -> Tensor:
    """Return the states of PEFT's model [B, T, D] at the texts' tokens; of an encoder-decoder its encoder's."""
    batch, plain = batch_of(backbone), model.get_base_model()
    reader = plain.encoder if plain.config.is_encoder_decoder else plain
    output: Tensor = reader(**batch).last_hidden_state
    return output * batch["attention_mask"][..., None]


def assert_equal(backbone: Backbone, delta: Delta, model: Any) -> None:
    """Compare with PEFT's states, to 1e-5 of the largest, which differ from those of the plain model."""
    expected, plain = states_of(backbone, model), states_of(backbone, _Plain(backbone))
    assert (states(backbone, delta) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (plain - expected).abs().max() > 1e-3 * expected.abs().max()


class _Plain:
    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def get_base_model(self) -> Any:
        return self.backbone.model


def loaded(backbone: Backbone, folder: Path) -> Any:
    return peft.PeftModel.from_pretrained(deepcopy(backbone.model), folder).eval()


def imported(backbone: Backbone, folder: Path) -> Delta:
    method, settings, values = from_peft(backbone, read_adapter(folder)[0])
    delta = replace(perturbed_delta(backbone, "probe"), method=method, settings=settings, values=values)
    check_compatible(backbone, delta)
    return delta


def exported(backbone: Backbone, delta: Delta, folder: Path) -> Path:
    origin = ExportOrigin(backbone=backbone.fingerprint, delta="mood@1", digest=delta.digest)
    write_adapter(folder, to_peft(backbone, delta), origin)
    return folder


@pytest.mark.parametrize(("name", "family"), CASES)
def test_peft_computes_the_states_of_an_exported_delta_and_it_is_imported_unchanged(
    name: str, family: str, tmp_path: Path
) -> None:
    method, settings, _ = EXPORTS[name]
    backbone = tiny_backbone(family)
    delta = perturbed_delta(backbone, method, **settings)
    model = loaded(backbone, exported(backbone, delta, tmp_path))
    assert_equal(backbone, delta, model)
    again = imported(backbone, tmp_path)
    assert again.method == ("lora" if method == "tiny_lora" else method)
    assert_equal(backbone, again, model)


def target(family: str) -> list[str]:
    names = {"bert": ["query", "output.dense"], "gpt2": ["c_attn", "mlp.c_proj"], "llama": ["q_proj", "down_proj"]}
    return {**names, "t5": ["SelfAttention.q", "wo"]}[family]


LAST = {"bert": "output.dense", "gpt2": "mlp.c_proj", "llama": "down_proj", "t5": "wo"}
NOT_GPT2 = ("bert", "llama", "t5")
Config = Callable[[str], Any]
CONFIGS: Mapping[str, tuple[tuple[str, ...], Config]] = {
    "ada_lora": (FAMILIES, lambda f: peft.AdaLoraConfig(init_r=3, total_step=9, target_modules=target(f))),
    "loha": (NOT_GPT2, lambda f: peft.LoHaConfig(r=3, alpha=5, module_dropout=0.2, target_modules=target(f))),
    "loha of patterns": (
        NOT_GPT2,
        lambda f: peft.LoHaConfig(
            r=3, alpha=5, rank_pattern={LAST[f]: 2}, alpha_pattern={LAST[f]: 9}, target_modules=target(f)
        ),
    ),
    "loha of one layer": (
        ("bert",),
        lambda f: peft.LoHaConfig(r=2, layers_to_transform=[1], layers_pattern="layer", target_modules=target(f)),
    ),
    "lokr": (NOT_GPT2, lambda f: peft.LoKrConfig(r=2, alpha=6, rank_dropout=0.1, target_modules=target(f))),
    "lokr of both": (
        NOT_GPT2,
        lambda f: peft.LoKrConfig(
            r=1,
            alpha=6,
            decompose_both=True,
            decompose_factor=4,
            rank_pattern={LAST[f]: 2},
            alpha_pattern={LAST[f]: 1},
            target_modules=target(f),
        ),
    ),
    "lokr of whole factors": (
        ("bert",),
        lambda f: peft.LoKrConfig(r=2, rank_pattern={LAST[f]: 9}, init_weights="lycoris", target_modules=target(f)),
    ),
    "oft by series": (NOT_GPT2, lambda f: peft.OFTConfig(oft_block_size=8, target_modules=target(f))),
    "oft by more terms": (
        ("bert",),
        lambda f: peft.OFTConfig(oft_block_size=8, num_cayley_neumann_terms=7, target_modules=target(f)),
    ),
    "oft": (
        NOT_GPT2,
        lambda f: peft.OFTConfig(oft_block_size=8, use_cayley_neumann=False, target_modules=target(f)),
    ),
    "oft of a number of blocks": (
        ("bert", "llama"),
        lambda f: peft.OFTConfig(r=4, oft_block_size=0, use_cayley_neumann=False, target_modules=target(f)),
    ),
    "oft of shared blocks": (
        ("bert",),
        lambda f: peft.OFTConfig(oft_block_size=4, block_share=True, module_dropout=0.1, target_modules=target(f)),
    ),
    "constrained oft": (
        ("bert",),
        lambda f: peft.OFTConfig(
            oft_block_size=8, coft=True, eps=0.5, use_cayley_neumann=False, target_modules=target(f)
        ),
    ),
    "boft": (NOT_GPT2, lambda f: peft.BOFTConfig(boft_block_size=8, boft_dropout=0.1, target_modules=target(f))),
    "boft of factors": (  # of which PEFT trains one without its extension
        ("bert",),
        lambda f: peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=2, target_modules=target(f)),
    ),
    "boft of a number of blocks": (
        ("bert",),
        lambda f: peft.BOFTConfig(boft_block_size=0, boft_block_num=8, target_modules=["query", "key"]),
    ),
    "fourier_ft": (
        NOT_GPT2,
        lambda f: peft.FourierFTConfig(n_frequency=30, scaling=9.0, random_loc_seed=5, target_modules=target(f)),
    ),
    "fourier_ft of patterns": (
        NOT_GPT2,
        lambda f: peft.FourierFTConfig(
            n_frequency=30, scaling=9.0, n_frequency_pattern={LAST[f]: 12}, target_modules=target(f)
        ),
    ),
    "fourier_ft of transposed weights": (
        ("gpt2",),
        lambda f: peft.FourierFTConfig(n_frequency=30, scaling=9.0, target_modules=["c_proj"]),
    ),
    "vera": (FAMILIES, lambda f: peft.VeraConfig(r=6, vera_dropout=0.1, target_modules=target(f))),
    "drawn vera": (
        FAMILIES,
        lambda f: peft.VeraConfig(r=6, save_projection=False, projection_prng_key=7, target_modules=target(f)),
    ),
    "tiny_lora": (FAMILIES, lambda f: peft.TinyLoraConfig(r=3, u=5, weight_tying=1.0, target_modules=target(f))),
}
OWN = [(name, family) for name, (families, _) in CONFIGS.items() for family in families]


def saved(backbone: Backbone, folder: Path, config: Any) -> Any:
    """Save an adapter of PEFT's whose every value differs from its initial one."""
    model = peft.get_peft_model(deepcopy(backbone.model), config).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(("name", "family"), OWN)
def test_an_adapter_of_pefts_computes_the_same_states_and_again_after_an_export(
    name: str, family: str, tmp_path: Path
) -> None:
    backbone = tiny_backbone(family)
    saved(backbone, tmp_path / "own", CONFIGS[name][1](family))
    delta = imported(backbone, tmp_path / "own")
    assert_equal(backbone, delta, loaded(backbone, tmp_path / "own"))
    (tmp_path / "again").mkdir()
    assert_equal(backbone, delta, loaded(backbone, exported(backbone, delta, tmp_path / "again")))


def test_stored_projections_are_exported_as_they_were_imported(tmp_path: Path) -> None:
    backbone = tiny_backbone("gpt2")
    saved(backbone, tmp_path, CONFIGS["vera"][1]("gpt2"))
    again = to_peft(backbone, imported(backbone, tmp_path)).tensors
    for name, tensor in load_file(tmp_path / ADAPTER).items():
        assert torch.equal(again[name], tensor)


def test_ranks_that_ada_lora_removed_are_left_out(tmp_path: Path) -> None:
    backbone = tiny_backbone("bert")
    config = peft.AdaLoraConfig(init_r=4, target_r=2, total_step=3, beta1=0.5, beta2=0.5, target_modules=["query"])
    model = peft.get_peft_model(deepcopy(backbone.model), config)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(4):
        model(**batch_of(backbone)).last_hidden_state.square().sum().backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    model.save_pretrained(tmp_path)
    kept = [sum(mask) for mask in json.loads((tmp_path / CONFIG).read_text())["rank_pattern"].values()]
    delta = imported(backbone, tmp_path)
    assert sum(kept) == 4  # of eight
    assert delta.settings.model_dump()["rank"] == max(kept)
    assert_equal(backbone, delta, loaded(backbone, tmp_path))


REFUSED_EXPORTS = [
    ("loha", {}, "gpt2", "LOHA for linear layers alone.*Conv1D.*--format transformers"),
    ("lokr", {}, "modernbert", "LOKR changes .*Wqkv as one matrix.*attn.out"),
    ("oft", {"block_size": 8}, "modernbert", "OFT rotates the inputs of .*Wqkv once"),
    ("oft", {"block_size": 3, "sites": ("ffn.out",)}, "narrow", "no blocks at block_size 3"),
    ("boft", {"block_size": 24, "factors": 1}, "bert", "one block size for all modules"),
    ("fourier_ft", {}, "gpt2", "FOURIERFT changes .*c_attn as one matrix"),
    ("tiny_lora", {"rank": 20}, "gpt2", "TINYLORA needs 60 singular vectors of .*c_attn"),
]


@pytest.mark.parametrize(("method", "settings", "family", "message"), REFUSED_EXPORTS)
def test_what_peft_cannot_compute_is_refused_with_the_reason(
    method: str, settings: dict[str, Any], family: str, message: str
) -> None:
    backbone = tiny_backbone("bert", intermediate_size=35) if family == "narrow" else tiny_backbone(family)
    with pytest.raises(ExchangeError, match=message):
        to_peft(backbone, perturbed_delta(backbone, method, **settings))


REFUSED_IMPORTS: Mapping[str, tuple[Config, str, dict[str, Any], str]] = {
    "one matrix": (
        lambda f: peft.FourierFTConfig(n_frequency=30, target_modules=["c_attn"]),
        "gpt2",
        {},
        "FOURIERFT changes .*c_attn as one matrix",
    ),
    "blocks of several sizes": (
        lambda f: peft.BOFTConfig(boft_block_size=0, boft_block_num=8, target_modules=target(f)),
        "bert",
        {},
        r"the sizes \[4, 6\]",
    ),
    "several vectors": (
        lambda f: peft.TinyLoraConfig(u=5, weight_tying=0.0, target_modules=target(f)),
        "bert",
        {},
        "several vectors tinylora_v",
    ),
    "no projections": (
        lambda f: peft.VeraConfig(r=6, save_projection=False, target_modules=target(f)),
        "bert",
        {"save_projection": True},
        r"save_projection, and its base_model.vera_A \[0, 0\]",
    ),
    "a rank of none": (
        lambda f: peft.LoHaConfig(r=3, target_modules=target(f)),
        "bert",
        {"rank_pattern": {"query": 2}},
        r"other shape: .*hada_w1_a \[32, 3\], not \[32, 2\]",
    ),
    "two sizes": (
        lambda f: peft.OFTConfig(oft_block_size=8, target_modules=target(f)),
        "bert",
        {"r": 4},
        "one of r .4. and oft_block_size .8. is zero",
    ),
    "another variant": (
        lambda f: peft.OFTConfig(oft_block_size=8, target_modules=target(f)),
        "bert",
        {"use_gralora": True},
        "not supported: {'use_gralora': True}",
    ),
}


@pytest.mark.parametrize("name", REFUSED_IMPORTS)
def test_an_adapter_that_no_delta_computes_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    config, family, changes, message = REFUSED_IMPORTS[name]
    backbone = tiny_backbone(family)
    saved(backbone, tmp_path, config(family))
    (tmp_path / CONFIG).write_text(json.dumps(json.loads((tmp_path / CONFIG).read_text()) | changes))
    with pytest.raises(ExchangeError, match=message):
        imported(backbone, tmp_path)


def test_a_bias_beside_the_change_is_refused(tmp_path: Path) -> None:
    backbone = tiny_backbone("bert")
    saved(backbone, tmp_path, CONFIGS["loha"][1]("bert"))
    bias = {"base_model.model.encoder.layer.0.attention.self.query.bias": torch.ones(32)}
    save_file(load_file(tmp_path / ADAPTER) | bias, tmp_path / ADAPTER)
    with pytest.raises(ExchangeError, match="a bias of the base"):
        imported(backbone, tmp_path)


def test_stored_projections_start_as_pefts(tmp_path: Path) -> None:
    backbone = tiny_backbone("bert")
    delta = fresh_delta(backbone, "vera", rank=6, projections="stored", sites=("attn.q", "ffn.out"))
    config = peft.VeraConfig(r=6, target_modules=target("bert"))
    peft.get_peft_model(deepcopy(backbone.model), config).save_pretrained(tmp_path)
    expected = load_file(tmp_path / ADAPTER)
    assert torch.equal(delta.values["shared/1/A"], expected["base_model.vera_A"])
    assert torch.equal(delta.values["shared/1/B"], expected["base_model.vera_B"])
    assert torch.equal(states(backbone, delta), states_of(backbone, _Plain(backbone)))
