"""Encoders: BERT, RoBERTa, XLM-R, ELECTRA, DistilBERT and ModernBERT."""

from typing import Any

from continual.backbones.families.blocks import attention_roles, feed_forward_roles, fused_attention_roles
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
    **feed_forward_roles(_MODERNBERT + "mlp.Wi", _MODERNBERT + "mlp.Wo", pre_norm=_MODERNBERT + "mlp_norm"),
    # Wi makes both halves, and the first goes through the activation.
    "ffn.gate": projection(_MODERNBERT + "mlp.Wi", (0, 2)),
    "ffn.in": projection(_MODERNBERT + "mlp.Wi", (1, 2)),
    "norm.final": norm("final_norm"),
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


def _encoder(
    config: Any, sites: dict[str, Site], *, unused: int = 0, load_arguments: dict[str, Any] | None = None
) -> Family:
    return Family(
        name=config.model_type,
        architecture="encoder",
        stack=LayerStack(sites, config.num_hidden_layers, config.num_attention_heads),
        hidden_size=config.hidden_size,
        max_positions=config.max_position_embeddings - unused,
        load_arguments=load_arguments or {},
    )
