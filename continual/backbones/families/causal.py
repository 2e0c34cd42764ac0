"""Causal language models whose modules have names of their own: GPT-2, GPT-NeoX and OPT."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from continual.backbones.arguments import Call
from continual.backbones.families.blocks import attention_roles, feed_forward_roles, fused_attention_roles
from continual.backbones.families.family import Family, LayerStack
from continual.backbones.sites import Site, embedding, norm, positions, projection, tokens

_GPT2 = "h.{}."
_GPT2_SITES = {
    "tokens": tokens("wte", ""),
    "positions": positions("wpe"),
    "embed.word": embedding("wte"),
    "embed.position": embedding("wpe"),
    "norm.attn": norm(_GPT2 + "ln_1"),
    **fused_attention_roles(_GPT2 + "attn", "c_attn", "c_proj", pre_norm=_GPT2 + "ln_1"),
    "norm.ffn": norm(_GPT2 + "ln_2"),
    **feed_forward_roles(_GPT2 + "mlp.c_fc", _GPT2 + "mlp.c_proj", pre_norm=_GPT2 + "ln_2"),
    "norm.final": norm("ln_f"),
}

_NEOX = "layers.{}."
_NEOX_SITES = {
    "tokens": tokens("embed_in", ""),
    "positions": positions("rotary_emb", "position_ids"),
    "embed.word": embedding("embed_in"),
    "norm.attn": norm(_NEOX + "input_layernorm"),
    **fused_attention_roles(_NEOX + "attention", "query_key_value", "dense", pre_norm=_NEOX + "input_layernorm"),
    "attn.qkv": projection(_NEOX + "attention.query_key_value"),
    "norm.ffn": norm(_NEOX + "post_attention_layernorm"),
    **feed_forward_roles(
        _NEOX + "mlp.dense_h_to_4h", _NEOX + "mlp.dense_4h_to_h", pre_norm=_NEOX + "post_attention_layernorm"
    ),
    "norm.final": norm("final_layer_norm"),
}
_INTERLEAVED = "its queries, keys and values are interleaved by head in one projection, attn.qkv"
_NEOX_ABSENT = dict.fromkeys(("attn.q", "attn.k", "attn.v", "attn.heads"), _INTERLEAVED)


def _opt_row_indices(call: Call) -> Tensor:
    """The rows [B, T] of OPT's position table, which begins with two unused ones."""
    indices: Tensor = call["position_ids"] + 2  # the first argument is the attention mask
    return indices


_OPT = "decoder.layers.{}."
_OPT_NORMS = (_OPT + "self_attn_layer_norm", _OPT + "final_layer_norm")  # of attention and of feed-forward
_OPT_SITES = {
    "tokens": tokens("decoder.embed_tokens", "decoder"),
    "positions": positions("decoder.embed_positions", "position_ids"),
    "embed.word": embedding("decoder.embed_tokens"),
    "embed.position": embedding("decoder.embed_positions", _opt_row_indices),
}
_OPT_FINAL_NORM = {"norm.final": norm("decoder.final_layer_norm")}
_OPT_PROJECTIONS = {
    "embed.project": projection("decoder.project_in"),
    "final.project": projection("decoder.project_out"),
}


def gpt2(config: Any) -> Family:
    """Return the family of a GPT-2 configuration."""
    return causal_family(config, _GPT2_SITES)


def gpt_neox(config: Any) -> Family:
    """Return the family of a GPT-NeoX configuration (Pythia).

    Attention and feed-forward read the same residual stream where `use_parallel_residual` is set.
    """
    sites = {name: site for name, site in _NEOX_SITES.items() if name not in _NEOX_ABSENT}
    if config.use_parallel_residual:
        sites["ffn"] = replace(sites["ffn"], beside_path=_NEOX + "attention.dense")
    return causal_family(config, sites, absent=_NEOX_ABSENT)


def opt(config: Any) -> Family:
    """Return the family of an OPT configuration.

    Its embeddings may have another size than its layers, its last norm may be absent, and its norms may have no
    weights.
    """
    norm_position, behind = ("pre_norm", False) if config.do_layer_norm_before else ("post_norm", True)
    sites = _OPT_SITES | {
        "norm.attn": norm(_OPT_NORMS[0], is_residual=behind),
        **attention_roles(_OPT + "self_attn", "q_proj k_proj v_proj out_proj", **{norm_position: _OPT_NORMS[0]}),
        "norm.ffn": norm(_OPT_NORMS[1], is_residual=behind),
        **feed_forward_roles(_OPT + "fc1", _OPT + "fc2", **{norm_position: _OPT_NORMS[1]}),
    }
    if config.do_layer_norm_before and not config._remove_final_layer_norm:
        sites |= _OPT_FINAL_NORM
    if config.word_embed_proj_dim != config.hidden_size:
        sites |= _OPT_PROJECTIONS
    if not config.layer_norm_elementwise_affine:
        sites = {name: site for name, site in sites.items() if site.group != "norms"}
    return causal_family(config, sites, hidden_size=config.word_embed_proj_dim)


def causal_family(
    config: Any, sites: Mapping[str, Site], *, hidden_size: int | None = None, absent: Mapping[str, str] | None = None
) -> Family:
    """Return the family of a causal language model.

    Args:
        config: Its configuration.
        sites: Its sites.
        hidden_size: Dimensions of its last hidden states, where they are not the configuration's.
        absent: Reasons why it lacks sites, by their names.
    """
    return Family(
        name=config.model_type,
        architecture="causal",
        stack=LayerStack(sites, config.num_hidden_layers, config.num_attention_heads),
        hidden_size=hidden_size or config.hidden_size,
        max_positions=config.max_position_embeddings,
        absent=absent or {},
    )
