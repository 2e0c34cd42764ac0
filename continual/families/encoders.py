"""Encoders: every token sees all others."""

from typing import Any

from continual.families.family import Family, Stack
from continual.sites import attention, between, embedding, entering, norm, projection, tokens

_BERT = "encoder.layer.{}."
_BERT_LAYER = {
    "attn": between(_BERT + "attention.self.query", _BERT + "attention.output.dense"),
    "attn.kv": attention(_BERT + "attention.self", _BERT + "attention.self.key"),
    "attn.q": projection(_BERT + "attention.self.query"),
    "attn.k": projection(_BERT + "attention.self.key"),
    "attn.v": projection(_BERT + "attention.self.value"),
    "attn.out": projection(_BERT + "attention.output.dense"),
    "norm.attn": norm(_BERT + "attention.output.LayerNorm"),
    "ffn": between(_BERT + "intermediate.dense", _BERT + "output.dense"),
    "ffn.in": projection(_BERT + "intermediate.dense"),
    "ffn.inner": entering(_BERT + "output.dense"),
    "ffn.out": projection(_BERT + "output.dense"),
    "norm.ffn": norm(_BERT + "output.LayerNorm"),
}
_BERT_EMBEDDINGS = {
    "tokens": tokens("embeddings.word_embeddings", ""),
    "embed.word": embedding("embeddings.word_embeddings"),
    "embed.position": embedding("embeddings.position_embeddings"),
    "embed.type": embedding("embeddings.token_type_embeddings"),
    "norm.embed": norm("embeddings.LayerNorm"),
}


def bert(config: Any) -> Family:
    """BERT, RoBERTa and XLM-R."""
    # RoBERTa's positions start behind the padding index, so two of its embeddings are never used.
    unused = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    return Family(
        name=config.model_type,
        architecture="encoder",
        stack=Stack(_BERT_EMBEDDINGS | _BERT_LAYER, config.num_hidden_layers),
        hidden_size=config.hidden_size,
        positions=config.max_position_embeddings - unused,
        load={"add_pooling_layer": False},
    )
