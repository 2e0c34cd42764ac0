"""Each method against its formula, written here a second time: in the weights of a model, as modules, or by PEFT."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import moved_delta
from torch import Tensor, nn
from torch.func import functional_call

from continual.backbone import Backbone
from continual.deltas import Delta, attached, load_delta
from continual.errors import DeltaError, MethodError
from continual.features import pad, tokenize

TEXTS = ["purr meow", "the awful dull tower of sugar and honey", "wave"]
ALL_LINEAR = ("attn.q", "attn.k", "attn.v", "attn.out", "ffn.in", "ffn.out")
Gradients = dict[str, Tensor]


def batch_of(backbone: Backbone) -> dict[str, Tensor]:
    return pad(backbone, tokenize(backbone, TEXTS, max_length=32), range(len(TEXTS)))


def module_names(backbone: Backbone, site: str) -> list[str]:
    """The names in the model of the modules of a site, in order of layers."""
    names = {id(module): name for name, module in backbone.model.named_modules()}
    return [names[id(place.exit)] for place in backbone.places(site)]


def loss_of(hidden: Tensor) -> Tensor:
    """A sum of all outputs with unequal weights, so that a gradient of every value shows."""
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(9))
    return (hidden * weights).sum()


def through_delta(backbone: Backbone, delta: Delta) -> tuple[Tensor, Gradients]:
    own = delta.trainable(torch.device("cpu"))
    with attached(backbone, own):
        hidden = backbone.hidden_states(batch_of(backbone))
        loss_of(hidden).backward()
    return hidden.detach(), {key: value.grad for key, value in own.values.items()}


def through_weights(
    backbone: Backbone, delta: Delta, changed: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> tuple[Tensor, Gradients]:
    """The same with parameters of the model replaced by a function of the delta's values."""
    values = {key: value.clone().requires_grad_() for key, value in delta.values.items()}
    output = functional_call(backbone.model, changed(values), kwargs=batch_of(backbone))
    hidden = output.last_hidden_state
    loss_of(hidden).backward()
    return hidden.detach(), {key: value.grad for key, value in values.items()}


def assert_same(found: tuple[Tensor, Gradients], expected: tuple[Tensor, Gradients]) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    assert found[1].keys() == expected[1].keys()
    for key, gradient in expected[1].items():
        torch.testing.assert_close(found[1][key], gradient, rtol=1e-3, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("sites", [("attn.q", "attn.v"), ALL_LINEAR], ids=["query and value", "all"])
def test_lora_is_the_model_with_weights_plus_scaled_ba(bertlike: Backbone, sites: tuple[str, ...]) -> None:
    delta = moved_delta(bertlike, "lora", rank=4, alpha=6.0, sites=sites)

    def merged(values: dict[str, Tensor]) -> dict[str, Tensor]:
        changed = {}
        for number, site in enumerate(sites):
            for layer, name in enumerate(module_names(bertlike, site)):
                key = f"layer.{layer}.{site}/{number}"
                weight = bertlike.model.get_parameter(f"{name}.weight")
                changed[f"{name}.weight"] = weight + 6.0 / 4 * values[f"{key}/B"] @ values[f"{key}/A"]
        return changed

    assert_same(through_delta(bertlike, delta), through_weights(bertlike, delta, merged))


def test_lora_is_pefts_lora(bertlike: Backbone) -> None:
    peft = pytest.importorskip("peft")
    delta = moved_delta(bertlike, "lora", rank=4, alpha=6.0, sites=("attn.q", "attn.v"))
    config = peft.LoraConfig(r=4, lora_alpha=6.0, target_modules=["query", "value"], lora_dropout=0.0)
    model = peft.get_peft_model(deepcopy(bertlike.model), config).eval()
    theirs: dict[str, Tensor] = {}
    for number, site in enumerate(("attn.q", "attn.v")):
        for layer, name in enumerate(module_names(bertlike, site)):
            module: Any = model.base_model.model.get_submodule(name)
            theirs[f"layer.{layer}.{site}/{number}/A"] = module.lora_A["default"].weight
            theirs[f"layer.{layer}.{site}/{number}/B"] = module.lora_B["default"].weight
    assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in delta.values.items()}
    with torch.no_grad():
        for key, parameter in theirs.items():
            parameter.copy_(delta.values[key])
    hidden = model(**batch_of(bertlike)).last_hidden_state
    loss_of(hidden).backward()
    assert_same(through_delta(bertlike, delta), (hidden.detach(), {key: value.grad for key, value in theirs.items()}))


def test_bitfit_is_the_model_with_other_biases(bertlike: Backbone) -> None:
    delta = moved_delta(bertlike, "bitfit")
    # Every bias there is, found by name: BitFit leaves none out.
    biases = [name for name, _ in bertlike.model.named_parameters() if name.endswith("bias")]
    modules = {id(module): name for name, module in bertlike.model.named_modules()}
    owners = {place.name: modules[id(place.exit)] for s in ("projections", "norms") for place in bertlike.places(s)}

    def merged(values: dict[str, Tensor]) -> dict[str, Tensor]:
        changed = {}
        for key, value in values.items():
            name = f"{owners[key.split('/')[0]]}.bias"
            changed[name] = bertlike.model.get_parameter(name) + value
        assert sorted(changed) == sorted(biases)
        return changed

    assert_same(through_delta(bertlike, delta), through_weights(bertlike, delta, merged))


class HoulsbyAdapter(nn.Module):
    """x + W_up GELU(W_down x + b_down) + b_up, as a layer of its own (Houlsby et al. 2019, figure 2)."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up, self.activation = nn.Linear(hidden, size), nn.Linear(size, hidden), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = x + self.up(self.activation(self.down(x)))
        return changed


def test_adapter_is_houlsbys_module_after_each_projection_and_other_norms(bertlike: Backbone) -> None:
    delta = moved_delta(bertlike, "adapter", size=5)
    model, owners = deepcopy(bertlike.model), {}
    for number, site in enumerate(("attn.out", "ffn.out")):
        for layer, name in enumerate(module_names(bertlike, site)):
            adapter, key = HoulsbyAdapter(5, bertlike.hidden_size), f"layer.{layer}.{site}/{number}"
            pairs = {"down": adapter.down.weight, "down_bias": adapter.down.bias}
            pairs |= {"up": adapter.up.weight, "up_bias": adapter.up.bias}
            owners |= {f"{key}/{part}": parameter for part, parameter in pairs.items()}
            parent, last = name.rsplit(".", 1)
            setattr(model.get_submodule(parent), last, nn.Sequential(model.get_submodule(name), adapter))
    with torch.no_grad():
        for key, parameter in owners.items():
            parameter.copy_(delta.values[key])
    # A norm's output times m plus c is a norm of gain m ⊙ γ and bias m ⊙ β + c.
    norms = {k: v.clone().requires_grad_() for k, v in delta.values.items() if k not in owners}
    changed = {}
    for number, site in ((2, "norm.embed"), (2, "norm.attn"), (2, "norm.ffn")):
        for layer, name in enumerate(module_names(bertlike, site)):
            place = site if site == "norm.embed" else f"layer.{layer}.{site}"
            m, c = (norms[f"{place}/{n}/vector"] for n in (number, number + 1))
            changed[f"{name}.weight"] = m * bertlike.model.get_parameter(f"{name}.weight")
            changed[f"{name}.bias"] = m * bertlike.model.get_parameter(f"{name}.bias") + c
    hidden = functional_call(model, changed, kwargs=batch_of(bertlike)).last_hidden_state
    loss_of(hidden).backward()
    gradients = {key: tensor.grad for key, tensor in {**owners, **norms}.items()}
    assert_same(through_delta(bertlike, delta), (hidden.detach(), gradients))


def body_size(delta: Delta) -> int:
    return sum(value.numel() for value in delta.values.values())


def test_parameter_counts_are_the_papers(bertlike: Backbone) -> None:
    config = bertlike.model.config
    layers, d, ffn = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    assert body_size(moved_delta(bertlike, "lora", rank=3)) == layers * 3 * (4 * (d + d) + 2 * (d + ffn))
    assert body_size(moved_delta(bertlike, "lora", rank=3, sites=("attn.q", "attn.v"))) == layers * 2 * 3 * (d + d)
    assert body_size(moved_delta(bertlike, "lora", rank=3, sites=("ffn.in",))) == layers * 3 * (d + ffn)
    m = 7
    per_layer = 2 * (2 * m * d + d + m) + 2 * 2 * d  # two adapters, two norms
    assert body_size(moved_delta(bertlike, "adapter", size=m)) == layers * per_layer + 2 * d  # and the embeddings' norm
    biases = sum(p.numel() for name, p in bertlike.model.named_parameters() if name.endswith("bias"))
    assert body_size(moved_delta(bertlike, "bitfit")) == biases


def test_parameter_count_includes_the_head(bert: Backbone) -> None:
    delta = moved_delta(bert, "lora", rank=3)
    assert delta.parameter_count == body_size(delta) + 2 * bert.hidden_size + 2


def test_a_site_that_the_family_lacks_is_refused_naming_those_it_has(bert: Backbone) -> None:
    with pytest.raises(MethodError, match=r"attn\.zzz.*attn\.q"):
        moved_delta(bert, "lora", sites=("attn.zzz",))


def test_places_are_checked_against_the_model(bert: Backbone) -> None:
    assert [place.name for place in bert.places("attn.q")] == ["layer.0.attn.q", "layer.1.attn.q"]
    wide = bert.places("ffn.in")[0]
    assert (wide.d_in, wide.d_out) == (32, 48)
    model = deepcopy(bert.model)
    del model.encoder.layer[1].attention.self.query
    with pytest.raises(Exception, match=r"encoder\.layer\.1\.attention\.self\.query"):
        replace(bert, model=model).places("attn.q")


@pytest.mark.parametrize(
    "data",
    [b"", b"not a delta", b"\xff" * 64, b"\x02\x00\x00\x00\x00\x00\x00\x00{}"],
    ids=["empty", "text", "noise", "no tensors"],
)
def test_bytes_that_are_no_delta_are_refused(data: bytes) -> None:
    with pytest.raises(DeltaError, match="not a stored delta"):
        load_delta(data)


def spoiled_file(delta: Delta, *, drop: str | None = None, **about: Any) -> bytes:
    """A delta's file without one tensor, or that says something else about itself."""
    import json

    from safetensors.torch import save

    said = {
        "method": delta.method,
        "settings": delta.settings.model_dump(mode="json"),
        "backbone": delta.backbone,
        "labels": delta.head.labels,
        "pooling": delta.head.pooling,
    }
    kept = {key: value for key, value in (said | about).items() if value is not None}
    tensors = {key: tensor for key, tensor in delta.tensors().items() if key != drop}
    return save(tensors, metadata={"continual": json.dumps(kept, sort_keys=True)})


def test_the_file_written_here_is_a_delta_when_not_spoiled(bert: Backbone) -> None:
    delta = moved_delta(bert, "lora")
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
        load_delta(spoiled_file(moved_delta(bert, "lora"), **spoil))
