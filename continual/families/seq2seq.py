"""Encoder-decoders: an encoder reads a text, and a decoder, which sees it by cross attention, writes another."""

from typing import Any

from continual.families.family import Family, Stack
from continual.sites import Site, attention, between, embedding, entering, norm, projection, tokens


def t5(config: Any) -> Family:
    """T5, and T5 v1.1 and flan-T5, whose feed-forward is gated. Positions are relative: inputs may have any length."""
    return Family(
        name=config.model_type,
        architecture="seq2seq",
        stack=Stack(_t5_sites("encoder", gated=config.is_gated_act), config.num_layers),
        decoder=Stack(
            _t5_sites("decoder", gated=config.is_gated_act) | _t5_cross("decoder.block.{}.layer.1."),
            config.num_decoder_layers,
        ),
        hidden_size=config.d_model,
        positions=None,
    )


def _t5_sites(stack: str, *, gated: bool) -> dict[str, Site]:
    attn, ffn = f"{stack}.block.{{}}.layer.0.", f"{stack}.block.{{}}.layer.{1 if stack == 'encoder' else 2}."
    inner = ffn + "DenseReluDense."
    # In GELU(x W_gate) ⊙ (x W_in), wi_0 is what goes through the GELU.
    first, rest = ("wi_1", {"ffn.gate": projection(inner + "wi_0")}) if gated else ("wi", {})
    return {
        "tokens": tokens(f"{stack}.embed_tokens", stack),
        "embed.word": embedding(f"{stack}.embed_tokens"),
        "embed.distance": embedding(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"),
        "norm.attn": norm(attn + "layer_norm"),
        **_t5_attention("attn", attn + "SelfAttention."),
        "norm.ffn": norm(ffn + "layer_norm"),
        "ffn": between(inner + first, inner + "wo"),
        "ffn.in": projection(inner + first),
        **rest,
        "ffn.inner": entering(inner + "wo"),
        "ffn.out": projection(inner + "wo"),
        "norm.final": norm(f"{stack}.final_layer_norm"),
    }


def _t5_cross(layer: str) -> dict[str, Site]:
    return {"norm.cross": norm(layer + "layer_norm"), **_t5_attention("cross", layer + "EncDecAttention.")}


def _t5_attention(role: str, path: str) -> dict[str, Site]:
    return {
        role: between(path + "q", path + "o"),
        f"{role}.kv": attention(path.rstrip("."), path + "k"),
        f"{role}.q": projection(path + "q"),
        f"{role}.k": projection(path + "k"),
        f"{role}.v": projection(path + "v"),
        f"{role}.out": projection(path + "o"),
    }
