"""Causal language models: GPT-2, Llama, Qwen2, Qwen3 and OPT."""

from typing import Any

from torch import Tensor

from continual.backbones.families.blocks import attention_roles, feed_forward_roles, fused_attention_roles
from continual.backbones.families.family import Family, LayerStack
from continual.backbones.sites import Call, Site, embedding, norm, positions, projection, tokens

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

_LLAMA = "layers.{}."
_LLAMA_SITES = {
    "tokens": tokens("embed_tokens", ""),
    "positions": positions("rotary_emb", "position_ids"),
    "embed.word": embedding("embed_tokens"),
    "norm.attn": norm(_LLAMA + "input_layernorm"),
    **attention_roles(_LLAMA + "self_attn", "q_proj k_proj v_proj o_proj", pre_norm=_LLAMA + "input_layernorm"),
    "norm.ffn": norm(_LLAMA + "post_attention_layernorm"),
    **feed_forward_roles(
        _LLAMA + "mlp.up_proj",
        _LLAMA + "mlp.down_proj",
        gate=_LLAMA + "mlp.gate_proj",
        pre_norm=_LLAMA + "post_attention_layernorm",
    ),
    "norm.final": norm("norm"),
}
_QWEN3_NORMS = {"norm.q": norm(_LLAMA + "self_attn.q_norm"), "norm.k": norm(_LLAMA + "self_attn.k_norm")}


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
    return _causal(config, _GPT2_SITES)


def llama(config: Any) -> Family:
    """Return the family of a Llama, Qwen2 or Qwen3 configuration.

    Qwen3 normalises the queries and keys of each head.
    """
    return _causal(config, _LLAMA_SITES | (_QWEN3_NORMS if config.model_type == "qwen3" else {}))


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
    return _causal(config, sites, hidden_size=config.word_embed_proj_dim)


def _causal(config: Any, sites: dict[str, Site], *, hidden_size: int | None = None) -> Family:
    return Family(
        name=config.model_type,
        architecture="causal",
        stack=LayerStack(sites, config.num_hidden_layers, config.num_attention_heads),
        hidden_size=hidden_size or config.hidden_size,
        max_positions=config.max_position_embeddings,
    )
