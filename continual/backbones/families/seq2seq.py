"""Encoder-decoders: T5 and mT5; BART, Marian and Pegasus."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from continual.backbones.arguments import Call
from continual.backbones.families.blocks import attention_roles, feed_forward_roles
from continual.backbones.families.family import Family, LayerStack
from continual.backbones.sites import Site, embedding, norm, positions, tokens


def t5(config: Any) -> Family:
    """Return the family of a T5 or mT5 configuration; T5 v1.1, flan-T5 and mT5 have a gated feed-forward.

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
    return _bart_family(config, _BART)


def marian(config: Any) -> Family:
    """Return the family of a Marian configuration: BART without a norm of the embeddings."""
    return _bart_family(config, _MARIAN)


def pegasus(config: Any) -> Family:
    """Return the family of a Pegasus configuration: norms before the blocks, and one behind each stack."""
    return _bart_family(config, _PEGASUS)


@dataclass(frozen=True)
class _BartVariant:
    """What BART and its relatives differ in.

    Attributes:
        read_positions: Computes the positions of a call of the position table, [T] or [B, T].
        first_row: The row of the position table for position 0.
        embed_norm: Name in a stack of the norm of the embeddings, if any.
        final_norm: Name in a stack of the norm behind the last layer, if any.
        pre_norm: Whether norms are before the blocks, not behind.
    """

    read_positions: Callable[[Call], Tensor]
    first_row: int = 0
    embed_norm: str = ""
    final_norm: str = ""
    pre_norm: bool = False

    def row_indices(self, call: Call) -> Tensor:
        """Return the rows of the position table that a call reads."""
        return self.read_positions(call) + self.first_row

    def norm_position(self, path: str) -> dict[str, str]:
        """Return the argument that tells a block where its norm is."""
        return {"pre_norm" if self.pre_norm else "post_norm": path}


def _bart_family(config: Any, variant: _BartVariant) -> Family:
    cross = "decoder.layers.{}.encoder_attn"
    cross_norm = cross + "_layer_norm"
    cross_sites = {
        "norm.cross": norm(cross_norm, is_residual=not variant.pre_norm),
        **attention_roles(cross, _BART_PROJECTIONS, role="cross", **variant.norm_position(cross_norm)),
    }
    decoder = _bart_sites("decoder", variant) | cross_sites
    return Family(
        name=config.model_type,
        architecture="seq2seq",
        stack=LayerStack(_bart_sites("encoder", variant), config.encoder_layers, config.encoder_attention_heads),
        decoder=LayerStack(decoder, config.decoder_layers, config.decoder_attention_heads),
        hidden_size=config.d_model,
        max_positions=config.max_position_embeddings,
    )


_BART_PROJECTIONS = "q_proj k_proj v_proj out_proj"


def _bart_sites(stack: str, variant: _BartVariant) -> dict[str, Site]:
    layer, table = stack + ".layers.{}.", f"{stack}.embed_positions"
    attention_norm, feed_forward_norm = layer + "self_attn_layer_norm", layer + "final_layer_norm"
    return {
        "tokens": tokens(f"{stack}.embed_tokens", stack),
        "embed.word": embedding(f"{stack}.embed_tokens"),
        "positions": positions(table, "position_ids", variant.read_positions),
        "embed.position": embedding(table, variant.row_indices),
        **({"norm.embed": norm(f"{stack}.{variant.embed_norm}")} if variant.embed_norm else {}),
        **attention_roles(layer + "self_attn", _BART_PROJECTIONS, **variant.norm_position(attention_norm)),
        "norm.attn": norm(attention_norm, is_residual=not variant.pre_norm),
        **feed_forward_roles(layer + "fc1", layer + "fc2", **variant.norm_position(feed_forward_norm)),
        "norm.ffn": norm(feed_forward_norm, is_residual=not variant.pre_norm),
        **({"norm.final": norm(f"{stack}.{variant.final_norm}")} if variant.final_norm else {}),
    }


def _bart_positions(call: Call) -> Tensor:
    """The positions of a call, [T] or [B, T].

    The decoder passes the positions. The encoder passes a tensor [B, T] whose shape tells how many there are.
    """
    position_ids: Tensor | None = call.get("position_ids")
    if position_ids is not None:
        return position_ids
    return torch.arange(call["input_ids"].shape[1], device=call["input_ids"].device)


def _sinusoid_positions(call: Call) -> Tensor:
    """The positions of a call, [T] or [B, T]: those passed, or as many as the shape (B, T) that is passed tells."""
    position_ids: Tensor | None = call.get("position_ids")
    return torch.arange(call["input_ids_shape"][1]) if position_ids is None else position_ids


_BART = _BartVariant(_bart_positions, first_row=2, embed_norm="layernorm_embedding")
_MARIAN = _BartVariant(_sinusoid_positions)
_PEGASUS = _BartVariant(_sinusoid_positions, final_norm="layer_norm", pre_norm=True)
