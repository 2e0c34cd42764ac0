"""Methods against their papers' equations, implemented a second time in a model's weights or layer by layer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.backbone import Backbone
from continual.deltas import attached, init_values
from continual.deltas.methods.full import Selective
from tests.helpers.parity import (
    assert_same,
    batch_of,
    module_names,
    other_norms,
    through_delta,
    through_equation,
    through_weights,
    with_weights,
    written_out,
)
from tests.helpers.tiny_tasks import perturbed_delta

ALL_LINEAR = ("attn.q", "attn.k", "attn.v", "attn.out", "ffn.in", "ffn.out")
Values = dict[str, Tensor]
Changed = Callable[[Backbone, Values], dict[str, Tensor]]  # parameters of the model by their names


def test_the_explicit_bert_equals_bert(bertlike: Backbone) -> None:
    mask = batch_of(bertlike)["attention_mask"].bool()
    torch.testing.assert_close(written_out(bertlike)[mask], with_weights(bertlike, {})[mask])


def weight(backbone: Backbone, module: str, name: str = "weight") -> Tensor:
    parameter: Tensor = backbone.model.get_parameter(f"{module}.{name}")
    return parameter


def plus_low_rank(backbone: Backbone, values: Values, *sites: str, scale: float) -> dict[str, Tensor]:
    """Compute W + s B A."""
    return {
        f"{module}.weight": weight(backbone, module)
        + scale * values[f"{place}/{number}/B"] @ values[f"{place}/{number}/A"]
        for number, site in enumerate(sites)
        for place, module in module_names(backbone, site).items()
    }


def plus_biases(backbone: Backbone, values: Values, *, projections: int, norms: int) -> dict[str, Tensor]:
    """Compute b + Δb from edits of these numbers."""
    return {
        f"{module}.bias": weight(backbone, module, "bias") + values[f"{place}/{number}/vector"]
        for number, group in ((projections, "projections"), (norms, "norms"))
        for place, module in module_names(backbone, group).items()
    }


def plus_full(backbone: Backbone, values: Values, *, first: int, group: str = "projections") -> dict[str, Tensor]:
    """Compute W + ΔW and b + Δb from edits `first` and `first + 1` at the places that have values."""
    changed = {}
    for place, module in module_names(backbone, group).items():
        if f"{place}/{first}/weight" in values:
            changed[f"{module}.weight"] = weight(backbone, module) + values[f"{place}/{first}/weight"]
            changed[f"{module}.bias"] = weight(backbone, module, "bias") + values[f"{place}/{first + 1}/vector"]
    return changed


def lora(backbone: Backbone, values: Values) -> dict[str, Tensor]:
    return plus_low_rank(backbone, values, *ALL_LINEAR, scale=6 / 4)


def dora(backbone: Backbone, values: Values) -> dict[str, Tensor]:
    """Compute m ⊙ (W + s B A) / ‖W + s B A‖ row by row, with a constant norm (section 4.3)."""
    changed = {}
    for name, moved in plus_low_rank(backbone, values, "attn.q", "ffn.out", scale=6 / 4).items():
        place = next(p for p, m in module_names(backbone, "attn.q", "ffn.out").items() if name == f"{m}.weight")
        magnitude = next(v for k, v in values.items() if k.startswith(f"{place}/") and k.endswith("/magnitude"))
        changed[name] = magnitude.unsqueeze(1) * moved / moved.detach().norm(dim=1, keepdim=True)
    return changed


def bitfit(backbone: Backbone, values: Values) -> dict[str, Tensor]:
    changed = plus_biases(backbone, values, projections=0, norms=1)
    # Every bias there is, found by name: BitFit leaves none out.
    assert changed.keys() == {name for name, _ in backbone.model.named_parameters() if name.endswith("bias")}
    return changed


def layer_norm(backbone: Backbone, values: Values) -> dict[str, Tensor]:
    changed = other_norms(backbone, values, first=0)
    assert changed.keys() == {name for name, _ in backbone.model.named_parameters() if "LayerNorm" in name}
    return changed


def last_layer(backbone: Backbone, values: Values) -> dict[str, Tensor]:
    changed = plus_full(backbone, values, first=0) | other_norms(backbone, values, first=2)
    top = f"encoder.layer.{backbone.num_layers - 1}."
    assert changed.keys() == {name for name, _ in backbone.model.named_parameters() if name.startswith(top)}
    return changed


def selective(backbone: Backbone, values: Values) -> dict[str, Tensor]:
    changed = plus_full(backbone, values, first=0)
    assert len(changed) == 2 * 6  # weight and bias of half the twelve projections
    return changed


def full(backbone: Backbone, values: Values) -> dict[str, Tensor]:
    embeddings = {
        f"{module}.weight": weight(backbone, module) + values[f"{place}/0/weight"]
        for place, module in module_names(backbone, "embeddings").items()
    }
    changed = embeddings | plus_full(backbone, values, first=1) | other_norms(backbone, values, first=3)
    assert changed.keys() == {name for name, _ in backbone.model.named_parameters()}
    return changed


def union(backbone: Backbone, values: Values) -> dict[str, Tensor]:
    """Compute the biases of BitFit and the weights of LoRA."""
    return plus_biases(backbone, values, projections=0, norms=1) | {
        f"{module}.weight": weight(backbone, module) + values[f"{place}/2/B"] @ values[f"{place}/2/A"]
        for place, module in module_names(backbone, "projections").items()
    }


LOW_RANK = {"rank": 4, "alpha": 6.0}
IN_WEIGHTS: list[tuple[Changed, dict[str, Any]]] = [
    (lora, LOW_RANK | {"sites": ALL_LINEAR}),
    (dora, LOW_RANK | {"sites": ("attn.q", "ffn.out")}),
    (bitfit, {}),
    (layer_norm, {}),
    (last_layer, {}),
    (selective, {"share": 0.5}),
    (full, {}),
    (union, {"parts": ["bitfit", {"name": "lora", "rank": 2, "alpha": 2}]}),
]


@pytest.mark.parametrize(("changed", "settings"), IN_WEIGHTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_method_equals_the_model_with_edited_weights(
    bertlike: Backbone, changed: Changed, settings: dict[str, Any]
) -> None:
    delta = perturbed_delta(bertlike, changed.__name__, **settings)
    expected = through_weights(bertlike, delta, lambda values: changed(bertlike, values))
    assert_same(through_delta(bertlike, delta), expected)


def test_selective_masks_follow_from_the_seed(bert: Backbone) -> None:
    drawn = [frozenset(init_values(bert, Selective(share=0.5, seed=seed), seed=0)) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


def test_a_probe_is_the_frozen_model(bertlike: Backbone) -> None:
    delta = perturbed_delta(bertlike, "probe")
    assert delta.values == {}
    with attached(bertlike, delta):
        assert torch.equal(bertlike.hidden_states(batch_of(bertlike)), with_weights(bertlike, {}))


class Bottleneck:
    """The function f(x W_downᵀ + b_down) W_upᵀ + b_up of edit `number` at a layer's site."""

    def __init__(self, values: Values, site: str, number: int, activation: Callable[[Tensor], Tensor]) -> None:
        self.values, self.site, self.number, self.activation = values, site, number, activation

    def __call__(self, layer: int, x: Tensor) -> Tensor:
        prefix = f"layer.{layer}.{self.site}/{self.number}/"
        down, down_bias, up, up_bias = (self.values[prefix + name] for name in ("down", "down_bias", "up", "up_bias"))
        return self.activation(x @ down.T + down_bias) @ up.T + up_bias


def adapter_pfeiffer(backbone: Backbone, values: Values) -> Tensor:
    """Compute h + f(LN(h + x)) after the feed-forward, LN the layer's own (Pfeiffer et al. 2021, appendix A)."""
    change, layers = Bottleneck(values, "ffn", 0, F.relu), backbone.model.encoder.layer
    return written_out(backbone, ffn=lambda n, x, h: h + change(n, layers[n].output.LayerNorm(h + x)))


def parallel_adapter(backbone: Backbone, values: Values) -> Tensor:
    """Compute h + s f(x) at attention and feed-forward, x their input (He et al. 2022, table 1)."""
    attn, ffn = Bottleneck(values, "attn", 0, F.relu), Bottleneck(values, "ffn", 1, F.relu)
    return written_out(backbone, attn=lambda n, x, h: h + 3 * attn(n, x), ffn=lambda n, x, h: h + 3 * ffn(n, x))


def multi_head_adapter(backbone: Backbone, values: Values) -> Tensor:
    """Add s · ReLU(q_h D_hᵀ) U_h to each head h's output (He et al. 2022, section 3.3)."""

    def change(layer: int, query: Tensor, mixed: Tensor) -> Tensor:
        down, up = (values[f"layer.{layer}.attn.heads/0/{name}"].chunk(4, dim=1) for name in ("down", "up"))
        added = [F.relu(q @ d.T) @ u for q, d, u in zip(query.chunk(4, dim=-1), down, up, strict=True)]
        return mixed + 2 * torch.cat(added, dim=-1)

    return written_out(backbone, heads=change)


def rows(values: Values, layer: int) -> tuple[Tensor, Tensor]:
    return values[f"layer.{layer}.attn.kv/0/key"], values[f"layer.{layer}.attn.kv/0/value"]


def prefix(backbone: Backbone, values: Values, *, before: int = 0) -> Tensor:
    return written_out(backbone, prefix=lambda n: rows(values, n), before=before)


def mam(backbone: Backbone, values: Values) -> Tensor:
    """Compute a prefix at attention and a scaled parallel adapter at the feed-forward (He et al. 2022, section 4.6)."""
    ffn = Bottleneck(values, "ffn", 1, F.relu)
    return written_out(backbone, prefix=lambda n: rows(values, n), ffn=lambda n, x, h: h + 2 * ffn(n, x))


def ia3(backbone: Backbone, values: Values) -> Tensor:
    """Scale keys, values and inner states: rows of W_k and W_v, and columns of W_2."""
    changed = {}
    for number, site in enumerate(("attn.k", "attn.v")):
        for place, module in module_names(backbone, site).items():
            for name in ("weight", "bias"):
                module_weight = weight(backbone, module, name)
                changed[f"{module}.{name}"] = torch.einsum(
                    "e...,e->e...", module_weight, values[f"{place}/{number}/vector"]
                )
    for place, module in module_names(backbone, "ffn.inner").items():
        changed[f"{module}.weight"] = weight(backbone, module) * values[f"{place}/2/vector"]
    return with_weights(backbone, changed)


def adapter(backbone: Backbone, values: Values) -> Tensor:
    """Compute h + f(h) after attention and feed-forward, and edited norms (Houlsby et al. 2019, figure 2)."""
    attn, ffn = Bottleneck(values, "attn.out", 0, F.gelu), Bottleneck(values, "ffn.out", 1, F.gelu)

    def norm(place: str, output: Tensor) -> Tensor:
        return values[f"{place}/2/vector"] * output + values[f"{place}/3/vector"]

    return written_out(backbone, attn=lambda n, x, h: h + attn(n, h), ffn=lambda n, x, h: h + ffn(n, h), norm=norm)


LAYER_BY_LAYER: list[tuple[Callable[[Backbone, Values], Tensor], dict[str, Any]]] = [
    (adapter, {"size": 5}),
    (adapter_pfeiffer, {"size": 5}),
    (parallel_adapter, {"size": 5, "scale": 3.0, "blocks": ("attn", "ffn")}),
    (multi_head_adapter, {"size": 5, "scale": 2.0}),
    (prefix, {"length": 3}),
    (mam, {"length": 3, "size": 5, "scale": 2.0}),
    (ia3, {}),
]


@pytest.mark.parametrize(("hidden", "settings"), LAYER_BY_LAYER, ids=lambda value: getattr(value, "__name__", ""))
def test_a_method_equals_the_explicit_model_with_the_change(
    bertlike: Backbone, hidden: Callable[[Backbone, Values], Tensor], settings: dict[str, Any]
) -> None:
    delta = perturbed_delta(bertlike, hidden.__name__, **settings)
    expected = through_equation(bertlike, delta, lambda values: hidden(bertlike, values))
    assert_same(through_delta(bertlike, delta), expected)


def test_a_prefix_may_shift_positions_as_in_peft(bertlike: Backbone) -> None:
    delta = perturbed_delta(bertlike, "prefix", length=3, shift_positions=True)
    expected = through_equation(bertlike, delta, lambda values: prefix(bertlike, values, before=3))
    assert_same(through_delta(bertlike, delta), expected)


@torch.no_grad()
def test_a_prefix_is_a_gated_parallel_adapter(bert: Backbone) -> None:
    """He et al. (2022), equations 5 to 7: (1 − λ) attention(q, K, V) + λ softmax(q P_kᵀ / √d) P_v for each head."""
    delta, model, batch = perturbed_delta(bert, "prefix", length=3), bert.model, batch_of(bert)
    attention, mask = model.encoder.layer[0].attention.self, batch["attention_mask"].bool()
    x = model.embeddings(batch["input_ids"])
    heads = model.config.num_attention_heads

    def split(states: Tensor) -> Tensor:
        return torch.unflatten(states, -1, (heads, -1)).transpose(-3, -2)

    query, key, value = (split(module(x)) for module in (attention.query, attention.key, attention.value))
    prefix_key, prefix_value = (split(vectors) for vectors in rows(dict(delta.values), 0))
    scale = query.shape[-1] ** -0.5
    of_text = (scale * query @ key.mT).masked_fill(~mask[:, None, None], float("-inf"))
    of_prefix = scale * query @ prefix_key.mT
    sums = (of_prefix.exp().sum(dim=-1, keepdim=True), of_text.exp().sum(dim=-1, keepdim=True))
    gate = sums[0] / (sums[0] + sums[1])
    gated = (1 - gate) * of_text.softmax(dim=-1) @ value + gate * of_prefix.softmax(dim=-1) @ prefix_value
    outputs: list[Tensor] = []
    with attention.register_forward_hook(lambda module, args, output: outputs.append(output[0])), attached(bert, delta):
        bert.hidden_states(batch)
    torch.testing.assert_close(outputs[0], gated.transpose(1, 2).flatten(2), rtol=1e-5, atol=1e-5)
