"""Encoder-decoders: T5 and BART."""

from typing import Any

import torch
from torch import Tensor

from continual.backbones.families.blocks import attention_roles, feed_forward_roles
from continual.backbones.families.family import Family, LayerStack
from continual.backbones.sites import Call, Site, embedding, norm, positions, tokens


def t5(config: Any) -> Family:
    """Return the family of a T5 configuration; T5 v1.1 and flan-T5 have a gated feed-forward.

    Positions are relative, so that an input may have any length.
    """
    gated = config.is_gated_act
    cross = "decoder.block.{}.layer.1."
    cross_sites = {
        "norm.cross": norm(cross + "layer_norm"),
        **attention_roles(cross + "EncDecAttention", "q k v o", role="cross", pre_norm=cross + "layer_norm"),
    }
    return Family(
        name=config.model_type,
        architecture="seq2seq",
        stack=LayerStack(_t5_sites("encoder", feed_forward=1, gated=gated), config.num_layers, config.num_heads),
        decoder=LayerStack(
            _t5_sites("decoder", feed_forward=2, gated=gated) | cross_sites, config.num_decoder_layers, config.num_heads
        ),
        hidden_size=config.d_model,
        max_positions=None,
    )


def _t5_sites(stack: str, *, feed_forward: int, gated: bool) -> dict[str, Site]:
    layer = stack + ".block.{}.layer."
    attn, ffn = f"{layer}0.", f"{layer}{feed_forward}."
    inner = ffn + "DenseReluDense."
    return {
        "tokens": tokens(f"{stack}.embed_tokens", stack),
        "embed.word": embedding(f"{stack}.embed_tokens"),
        "embed.distance": embedding(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias", is_shared=True),
        "norm.attn": norm(attn + "layer_norm"),
        **attention_roles(attn + "SelfAttention", "q k v o", pre_norm=attn + "layer_norm"),
        "norm.ffn": norm(ffn + "layer_norm"),
        **(
            feed_forward_roles(inner + "wi_1", inner + "wo", gate=inner + "wi_0", pre_norm=ffn + "layer_norm")
            if gated
            else feed_forward_roles(inner + "wi", inner + "wo", pre_norm=ffn + "layer_norm")
        ),
        "norm.final": norm(f"{stack}.final_layer_norm"),
    }


def bart(config: Any) -> Family:
    """Return the family of a BART configuration."""
    cross = "decoder.layers.{}.encoder_attn"
    cross_sites = {
        "norm.cross": norm(cross + "_layer_norm", is_residual=True),
        **attention_roles(cross, "q_proj k_proj v_proj out_proj", role="cross", post_norm=cross + "_layer_norm"),
    }
    return Family(
        name=config.model_type,
        architecture="seq2seq",
        stack=LayerStack(_bart_sites("encoder"), config.encoder_layers, config.encoder_attention_heads),
        decoder=LayerStack(_bart_sites("decoder") | cross_sites, config.decoder_layers, config.decoder_attention_heads),
        hidden_size=config.d_model,
        max_positions=config.max_position_embeddings,
    )


def _bart_sites(stack: str) -> dict[str, Site]:
    layer = stack + ".layers.{}."
    return {
        "tokens": tokens(f"{stack}.embed_tokens", stack),
        "embed.word": embedding(f"{stack}.embed_tokens"),
        "positions": positions(f"{stack}.embed_positions", "position_ids", _bart_positions),
        "embed.position": embedding(f"{stack}.embed_positions", _bart_row_indices),
        "norm.embed": norm(f"{stack}.layernorm_embedding"),
        **attention_roles(
            layer + "self_attn", "q_proj k_proj v_proj out_proj", post_norm=layer + "self_attn_layer_norm"
        ),
        "norm.attn": norm(layer + "self_attn_layer_norm", is_residual=True),
        **feed_forward_roles(layer + "fc1", layer + "fc2", post_norm=layer + "final_layer_norm"),
        "norm.ffn": norm(layer + "final_layer_norm", is_residual=True),
    }


def _bart_row_indices(call: Call) -> Tensor:
    """The rows of BART's position table, which begins with two unused ones."""
    return _bart_positions(call) + 2


def _bart_positions(call: Call) -> Tensor:
    """The positions of a call, [T] or [B, T].

    The decoder passes the positions. The encoder passes a tensor [B, T] whose shape tells how many there are.
    """
    position_ids: Tensor | None = call.get("position_ids")
    if position_ids is not None:
        return position_ids
    return torch.arange(call["input_ids"].shape[1], device=call["input_ids"].device)
