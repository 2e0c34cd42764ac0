"""Where the sites of each model family are.

A *site* is a role in a transformer block ("attn.q", "ffn.out", "norm.attn"); a family says which module plays it.
Methods name sites only, so a method works on every family whose table has them. Adding a family is adding a table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from continual.errors import BackboneError, MethodError


@dataclass(frozen=True)
class Family:
    """One model family: the path of each site's module, `{}` standing for the number of the layer."""

    name: str
    sites: Mapping[str, str]
    load: Mapping[str, Any]  # arguments of `from_pretrained` that leave out heads without trained weights


@dataclass(frozen=True)
class Place:
    """One module that plays a site, e.g. the query projection of layer 3.

    name: stable key of the place, `layer.3.attn.q` · site: `attn.q` · d_in, d_out: last dimensions of input and output.
    """

    name: str
    site: str
    module: nn.Module
    d_in: int
    d_out: int


_BERT_SITES = {
    "norm.embed": "embeddings.LayerNorm",
    "attn.q": "encoder.layer.{}.attention.self.query",
    "attn.k": "encoder.layer.{}.attention.self.key",
    "attn.v": "encoder.layer.{}.attention.self.value",
    "attn.out": "encoder.layer.{}.attention.output.dense",
    "norm.attn": "encoder.layer.{}.attention.output.LayerNorm",
    "ffn.in": "encoder.layer.{}.intermediate.dense",
    "ffn.out": "encoder.layer.{}.output.dense",
    "norm.ffn": "encoder.layer.{}.output.LayerNorm",
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
    """Every place of `site` in `model`, from the lowest layer to the highest.

    Raises MethodError for a site that the family does not have, BackboneError where a module is not where it should be.
    """
    if site not in family.sites:
        raise MethodError(f"family {family.name!r} has no site {site!r}; it has: {', '.join(family.sites)}")
    path = family.sites[site]
    layers = range(model.config.num_hidden_layers) if "{}" in path else (None,)
    return tuple(_place(model, site, path, layer) for layer in layers)


def _place(model: Any, site: str, path: str, layer: int | None) -> Place:
    full = path.format(layer)
    try:
        module = model.get_submodule(full)
    except AttributeError as error:
        raise BackboneError(f"site {site!r} should be module {full!r}, which is not there: {error}") from None
    weight = module.get_parameter("weight")  # linear: [d_out, d_in]; norm: [d]
    name = site if layer is None else f"layer.{layer}.{site}"
    return Place(name, site, module, d_in=weight.shape[-1], d_out=weight.shape[0])
