"""Causal language models with Llama's modules, and those that differ from it in a few: norms, fused parts, experts."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from continual.backbones.arguments import Call
from continual.backbones.families.blocks import (
    attention_roles,
    feed_forward_roles,
    fused_attention_roles,
    fused_gate_roles,
    only_in,
)
from continual.backbones.families.causal import causal_family
from continual.backbones.families.family import Family
from continual.backbones.sites import Site, block, embedding, norm, positions, projection, tokens

_LAYER = "layers.{}."
_ATTENTION = _LAYER + "self_attn"
_PROJECTIONS = "q_proj k_proj v_proj o_proj"
_PRE_NORMS = (_LAYER + "input_layernorm", _LAYER + "post_attention_layernorm")  # of attention and of feed-forward
_HEAD_NORMS = {"norm.q": norm(_ATTENTION + ".q_norm"), "norm.k": norm(_ATTENTION + ".k_norm")}


def _mlp_roles(module: str, **norms: str) -> dict[str, Site]:
    return feed_forward_roles(f"{module}.up_proj", f"{module}.down_proj", gate=f"{module}.gate_proj", **norms)


def _stack_sites(attention: Mapping[str, Site], feed_forward: Mapping[str, Site]) -> dict[str, Site]:
    """The sites of a stack from those of its layers' two blocks, each with its norms."""
    return {
        "tokens": tokens("embed_tokens", ""),
        "positions": positions("rotary_emb", "position_ids"),
        "embed.word": embedding("embed_tokens"),
        **attention,
        **feed_forward,
        "norm.final": norm("norm"),
    }


_LLAMA_ATTENTION = {
    "norm.attn": norm(_PRE_NORMS[0]),
    **attention_roles(_ATTENTION, _PROJECTIONS, pre_norm=_PRE_NORMS[0]),
}
_LLAMA_FEED_FORWARD = {"norm.ffn": norm(_PRE_NORMS[1]), **_mlp_roles(_LAYER + "mlp", pre_norm=_PRE_NORMS[1])}
LLAMA_SITES = _stack_sites(_LLAMA_ATTENTION, _LLAMA_FEED_FORWARD)

_OUT_NORMS = (_LAYER + "post_attention_layernorm", _LAYER + "post_feedforward_layernorm")  # of what the blocks add
_GEMMA_PRE_NORMS = (_LAYER + "input_layernorm", _LAYER + "pre_feedforward_layernorm")
_GEMMA_SITES = _stack_sites(
    {
        "norm.attn": norm(_GEMMA_PRE_NORMS[0]),
        **attention_roles(_ATTENTION, _PROJECTIONS, pre_norm=_GEMMA_PRE_NORMS[0], out_norm=_OUT_NORMS[0]),
        "norm.attn_out": norm(_OUT_NORMS[0]),
    },
    {
        "norm.ffn": norm(_GEMMA_PRE_NORMS[1]),
        **_mlp_roles(_LAYER + "mlp", pre_norm=_GEMMA_PRE_NORMS[1], out_norm=_OUT_NORMS[1]),
        "norm.ffn_out": norm(_OUT_NORMS[1]),
    },
)
_OLMO2_SITES = _stack_sites(
    {**attention_roles(_ATTENTION, _PROJECTIONS, out_norm=_OUT_NORMS[0]), "norm.attn_out": norm(_OUT_NORMS[0])},
    {**_mlp_roles(_LAYER + "mlp", out_norm=_OUT_NORMS[1]), "norm.ffn_out": norm(_OUT_NORMS[1])},
)
_EXPERTS = "the weights of its experts are fused tensors, of no module"


def llama(config: Any) -> Family:
    """Return the family of a Llama, Mistral, SmolLM3 or Qwen2 configuration."""
    return causal_family(config, LLAMA_SITES)


def qwen3(config: Any) -> Family:
    """Return the family of a Qwen3 configuration, which normalises the queries and keys of each head."""
    return causal_family(config, LLAMA_SITES | _HEAD_NORMS)


def gemma2(config: Any) -> Family:
    """Return the family of a Gemma 2 configuration: norms before the blocks, and of what they add."""
    return causal_family(config, _with_centred_norms(_GEMMA_SITES))


def gemma3(config: Any) -> Family:
    """Return the family of a Gemma 3 configuration of texts: Gemma 2 with norms of each head's queries and keys."""
    return causal_family(config, _with_centred_norms(_GEMMA_SITES | _HEAD_NORMS))


def _with_centred_norms(sites: Mapping[str, Site]) -> dict[str, Site]:
    """Sites whose norms have the gain 1 + w."""
    return {name: replace(site, offset=1.0) if site.group == "norms" else site for name, site in sites.items()}


def olmo2(config: Any) -> Family:
    """Return the family of an OLMo 2 configuration: norms of what the blocks add, and of all queries and keys."""
    return causal_family(config, _OLMO2_SITES | _HEAD_NORMS)


def phi3(config: Any) -> Family:
    """Return the family of a Phi-3 configuration: one projection each before attention and feed-forward."""
    sizes = (config.num_attention_heads, config.num_key_value_heads)
    attention = fused_attention_roles(_ATTENTION, "qkv_proj", "o_proj", pre_norm=_PRE_NORMS[0], sizes=sizes)
    feed_forward = fused_gate_roles(_LAYER + "mlp.gate_up_proj", _LAYER + "mlp.down_proj", pre_norm=_PRE_NORMS[1])
    sites = _stack_sites(
        {"norm.attn": norm(_PRE_NORMS[0]), **attention}, {"norm.ffn": norm(_PRE_NORMS[1]), **feed_forward}
    )
    return causal_family(config, sites)


def qwen3_moe(config: Any) -> Family:
    """Return the family of a Qwen3 configuration with experts; layers without experts have Llama's projections."""
    dense = [
        layer
        for layer in range(config.num_hidden_layers)
        if layer in config.mlp_only_layers or not config.num_experts or (layer + 1) % config.decoder_sparse_step
    ]
    module = _LAYER + "mlp"
    feed_forward = {
        "norm.ffn": norm(_PRE_NORMS[1]),
        **_dense_roles(module, dense),
        "ffn": block(module, module, pre_norm=_PRE_NORMS[1], width=config.hidden_size),
    }
    return causal_family(config, _stack_sites(_LLAMA_ATTENTION, feed_forward) | _HEAD_NORMS, absent=_absent(dense))


def llama4(config: Any) -> Family:
    """Return the family of a Llama 4 configuration of texts.

    Layers without experts have Llama's projections. Those with experts have the projections `shared.in`, `shared.gate`
    and `shared.out` of the expert through which every token goes.
    """
    dense = [layer for layer in range(config.num_hidden_layers) if layer not in config.moe_layers]
    module = _LAYER + "feed_forward"
    shared = {
        name.replace("ffn", "shared"): site
        for name, site in _mlp_roles(module + ".shared_expert").items()
        if site.group == "projections"
    }
    feed_forward = {
        "norm.ffn": norm(_PRE_NORMS[1]),
        **_dense_roles(module, dense),
        **only_in(config.moe_layers, shared),
    }
    return causal_family(config, _stack_sites(_LLAMA_ATTENTION, feed_forward), absent=_absent(dense))


def _dense_roles(module: str, layers: Iterable[int]) -> dict[str, Site]:
    return only_in(layers, _mlp_roles(module, pre_norm=_PRE_NORMS[1]))


def _absent(dense: list[int]) -> dict[str, str]:
    """The reason why a model without dense layers lacks the sites of their feed-forward."""
    return {} if dense else dict.fromkeys(("ffn", "ffn.in", "ffn.gate", "ffn.inner", "ffn.out"), _EXPERTS)


def _text_positions(call: Call) -> Any:
    """The positions [B, T] of a text from those of time, height and width, [3, B, T], which are the same."""
    return call["position_ids"][0]


_LINEAR = _LAYER + "linear_attn."
_LINEAR_ROLES = {
    "linear": block(_LINEAR + "in_proj_qkv", _LINEAR + "out_proj", pre_norm=_PRE_NORMS[0]),
    # Keys and values of padding must stay zero, or the state would take them in.
    "linear.qkv": replace(projection(_LINEAR + "in_proj_qkv"), keeps_zeros=True),
    **{f"linear.{name}": projection(f"{_LINEAR}in_proj_{name}") for name in ("z", "b", "a")},
    "linear.out": projection(_LINEAR + "out_proj"),
}
_QWEN3_5_ABSENT = {"attn.heads": "the projection attn.q makes each head's query and the gate of its output"}


def qwen3_5(config: Any) -> Family:
    """Return the family of a Qwen3.5 configuration of texts.

    Some layers have attention, whose query projection makes a gate of the output too; the others have linear attention,
    with the projections `linear.qkv`, `linear.z`, `linear.b`, `linear.a` and `linear.out`.
    """
    layers: dict[str, list[int]] = {"full_attention": [], "linear_attention": []}
    for layer, kind in enumerate(config.layer_types):
        layers[kind].append(layer)
    roles = attention_roles(_ATTENTION, _PROJECTIONS, pre_norm=_PRE_NORMS[0]) | _HEAD_NORMS
    del roles["attn.heads"]
    attention = {
        "norm.attn": norm(_PRE_NORMS[0]),
        **only_in(layers["full_attention"], roles),
        **only_in(layers["linear_attention"], _LINEAR_ROLES),
    }
    sites = _stack_sites(attention, _LLAMA_FEED_FORWARD)
    sites["positions"] = positions("rotary_emb", "position_ids", _text_positions)
    return causal_family(config, _with_centred_norms(sites), absent=_QWEN3_5_ABSENT)
