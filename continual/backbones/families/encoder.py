"""Encoders: BERT, RoBERTa, XLM-R, ELECTRA, DistilBERT, ModernBERT, MPNet and DeBERTa-v2."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from continual.backbones.families.blocks import (
    attention_roles,
    feed_forward_roles,
    fused_attention_roles,
    fused_gate_roles,
)
from continual.backbones.families.family import Family, LayerStack
from continual.backbones.sites import Site, embedding, norm, positions, projection, tokens

_BERT = "encoder.layer.{}."
_BERT_SITES = {
    "tokens": tokens("embeddings.word_embeddings", ""),
    "positions": positions("embeddings.position_embeddings"),
    "embed.word": embedding("embeddings.word_embeddings"),
    "embed.position": embedding("embeddings.position_embeddings"),
    "embed.type": embedding("embeddings.token_type_embeddings"),
    "norm.embed": norm("embeddings.LayerNorm"),
    **attention_roles(
        _BERT + "attention.self",
        "query key value",
        out=_BERT + "attention.output.dense",
        post_norm=_BERT + "attention.output.LayerNorm",
    ),
    "norm.attn": norm(_BERT + "attention.output.LayerNorm", is_residual=True),
    **feed_forward_roles(_BERT + "intermediate.dense", _BERT + "output.dense", post_norm=_BERT + "output.LayerNorm"),
    "norm.ffn": norm(_BERT + "output.LayerNorm", is_residual=True),
}

_DISTILBERT = "transformer.layer.{}."
_DISTILBERT_SITES = {
    "tokens": tokens("embeddings.word_embeddings", ""),
    "positions": positions("embeddings.position_embeddings"),
    "embed.word": embedding("embeddings.word_embeddings"),
    "embed.position": embedding("embeddings.position_embeddings"),
    "norm.embed": norm("embeddings.LayerNorm"),
    **attention_roles(_DISTILBERT + "attention", "q_lin k_lin v_lin out_lin", post_norm=_DISTILBERT + "sa_layer_norm"),
    "norm.attn": norm(_DISTILBERT + "sa_layer_norm", is_residual=True),
    **feed_forward_roles(
        _DISTILBERT + "ffn.lin1", _DISTILBERT + "ffn.lin2", post_norm=_DISTILBERT + "output_layer_norm"
    ),
    "norm.ffn": norm(_DISTILBERT + "output_layer_norm", is_residual=True),
}

_MODERNBERT = "layers.{}."
_MODERNBERT_SITES = {
    "tokens": tokens("embeddings.tok_embeddings", ""),
    "positions": positions("rotary_emb", "position_ids"),
    "embed.word": embedding("embeddings.tok_embeddings"),
    "norm.embed": norm("embeddings.norm"),
    "norm.attn": norm(_MODERNBERT + "attn_norm"),
    **fused_attention_roles(_MODERNBERT + "attn", "Wqkv", "Wo", pre_norm=_MODERNBERT + "attn_norm"),
    "norm.ffn": norm(_MODERNBERT + "mlp_norm"),
    **fused_gate_roles(_MODERNBERT + "mlp.Wi", _MODERNBERT + "mlp.Wo", pre_norm=_MODERNBERT + "mlp_norm"),
    "norm.final": norm("final_norm"),
}

_OWN_ATTENTION = {
    "attn.kv": "its attention does not go through transformers' AttentionInterface, where keys and values are put in "
    "front of the text's"
}
_MPNET = "encoder.layer.{}."
_MPNET_SITES = {
    "tokens": tokens("embeddings.word_embeddings", ""),
    "positions": positions("embeddings.position_embeddings"),
    "embed.word": embedding("embeddings.word_embeddings"),
    "embed.position": embedding("embeddings.position_embeddings"),
    "embed.distance": embedding("encoder.relative_attention_bias", is_shared=True),
    "norm.embed": norm("embeddings.LayerNorm"),
    **attention_roles(_MPNET + "attention.attn", "q k v o", post_norm=_MPNET + "attention.LayerNorm"),
    "norm.attn": norm(_MPNET + "attention.LayerNorm", is_residual=True),
    **feed_forward_roles(_MPNET + "intermediate.dense", _MPNET + "output.dense", post_norm=_MPNET + "output.LayerNorm"),
    "norm.ffn": norm(_MPNET + "output.LayerNorm", is_residual=True),
}

_DEBERTA = "encoder.layer.{}."
_DEBERTA_SITES = {
    "tokens": tokens("embeddings.word_embeddings", ""),
    "embed.word": embedding("embeddings.word_embeddings"),
    "norm.embed": norm("embeddings.LayerNorm"),
    **attention_roles(
        _DEBERTA + "attention.self",
        "query_proj key_proj value_proj",
        out=_DEBERTA + "attention.output.dense",
        post_norm=_DEBERTA + "attention.output.LayerNorm",
    ),
    "norm.attn": norm(_DEBERTA + "attention.output.LayerNorm", is_residual=True),
    **feed_forward_roles(
        _DEBERTA + "intermediate.dense", _DEBERTA + "output.dense", post_norm=_DEBERTA + "output.LayerNorm"
    ),
    "norm.ffn": norm(_DEBERTA + "output.LayerNorm", is_residual=True),
}
_DEBERTA_POSITIONS = {
    "positions": positions("embeddings.position_embeddings"),
    "embed.position": embedding("embeddings.position_embeddings"),
}


def bert(config: Any) -> Family:
    """Return the family of a BERT, RoBERTa or XLM-R configuration."""
    # RoBERTa's positions start behind the padding index, so two of its embeddings are never used.
    unused = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    return _encoder(config, _BERT_SITES, unused=unused, load_arguments={"add_pooling_layer": False})


def electra(config: Any) -> Family:
    """Return the family of an ELECTRA configuration; embeddings and layers may differ in size."""
    sites = dict(_BERT_SITES)
    if config.embedding_size != config.hidden_size:
        sites["embed.project"] = projection("embeddings_project")
    return _encoder(config, sites)


def distilbert(config: Any) -> Family:
    """Return the family of a DistilBERT configuration."""
    return _encoder(config, _DISTILBERT_SITES)


def modernbert(config: Any) -> Family:
    """Return the family of a ModernBERT configuration; layer 0 has no norm before its attention."""
    return _encoder(config, _MODERNBERT_SITES)


def mpnet(config: Any) -> Family:
    """Return the family of an MPNet configuration: absolute positions, and distances that all layers share.

    Positions start behind the padding index, 1.
    """
    return _encoder(
        config,
        _without_keys_and_values(_MPNET_SITES),
        unused=2,
        load_arguments={"add_pooling_layer": False},
        absent=_OWN_ATTENTION,
    )


def deberta_v2(config: Any) -> Family:
    """Return the family of a DeBERTa-v2 or -v3 configuration, whose attention has parts for content and for distance.

    The table of distances is read as a weight, never called, and has no site. Where distances go through the
    projections of queries and keys (`share_att_key`), an edit of these changes what all rows have in common.
    """
    sites, absent = _without_keys_and_values(_DEBERTA_SITES), dict(_OWN_ATTENTION)
    if config.position_biased_input:
        sites |= _DEBERTA_POSITIONS
    if config.type_vocab_size:
        sites["embed.type"] = embedding("embeddings.token_type_embeddings")
    if getattr(config, "embedding_size", config.hidden_size) != config.hidden_size:
        sites["embed.project"] = projection("embeddings.embed_proj")
    if config.relative_attention and getattr(config, "share_att_key", False):
        sites |= {name: replace(sites[name], is_shared=True) for name in ("attn.q", "attn.k")}
        sites["attn"] = replace(sites["attn"], input_path=sites["attn.v"].input_path)  # called once, for the text alone
        del sites["attn.heads"]
        absent["attn.heads"] = "the projection of its queries is called for the distances too"
    return _encoder(config, sites, absent=absent)


def _without_keys_and_values(sites: dict[str, Site]) -> dict[str, Site]:
    return {name: site for name, site in sites.items() if name != "attn.kv"}


def _encoder(
    config: Any,
    sites: dict[str, Site],
    *,
    unused: int = 0,
    load_arguments: dict[str, Any] | None = None,
    absent: Mapping[str, str] | None = None,
) -> Family:
    return Family(
        name=config.model_type,
        architecture="encoder",
        stack=LayerStack(sites, config.num_hidden_layers, config.num_attention_heads),
        hidden_size=config.hidden_size,
        max_positions=config.max_position_embeddings - unused,
        load_arguments=load_arguments or {},
        absent=absent or {},
    )
