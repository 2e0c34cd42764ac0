"""The model families: for each, one table of roles. Adding a family is adding a table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from continual.errors import BackboneError
from continual.sites import (
    Place,
    Site,
    attention,
    between,
    embedding,
    entering,
    expand,
    norm,
    places_of,
    projection,
    tokens,
)


@dataclass(frozen=True)
class Family:
    """One model family: the table of its sites, and arguments of `from_pretrained` that leave out untrained heads."""

    name: str
    sites: Mapping[str, Site]
    load: Mapping[str, Any] = field(default_factory=dict)


_BERT = "encoder.layer.{}."
_BERT_SITES = {
    "tokens": tokens("embeddings.word_embeddings", ""),
    "positions": entering("embeddings.position_embeddings"),
    "embed.word": embedding("embeddings.word_embeddings"),
    "embed.position": embedding("embeddings.position_embeddings"),
    "embed.type": embedding("embeddings.token_type_embeddings"),
    "norm.embed": norm("embeddings.LayerNorm"),
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
_NO_POOLER = {"add_pooling_layer": False}

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family("bert", _BERT_SITES, _NO_POOLER),
        Family("roberta", _BERT_SITES, _NO_POOLER),
        Family("xlm-roberta", _BERT_SITES, _NO_POOLER),
    )
}


def family_of(model_type: str) -> Family:
    """The family of a transformers `model_type`.

    Raises BackboneError where the family has no table of sites yet.
    """
    if model_type not in FAMILIES:
        raise BackboneError(
            f"the backbone is of family {model_type!r}, which has no table of sites; "
            f"families with one: {', '.join(FAMILIES)}. Use a backbone of these, or add a table to FAMILIES"
        )
    return FAMILIES[model_type]


def places(model: Any, family: Family, site: str) -> tuple[Place, ...]:
    """Every place of `site`, or of the sites of a group, in `model`, each site from the lowest layer to the highest.

    Raises MethodError for a site that the family does not have, BackboneError where a module is not where it should be.
    """
    layers = model.config.num_hidden_layers
    return tuple(
        place
        for name in expand(family.sites, site, family=family.name)
        for place in places_of(model, name, family.sites[name], layers=layers)
    )
