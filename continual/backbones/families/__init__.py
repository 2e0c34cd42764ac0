"""The model families: for each, one table of roles. Adding a family is adding a table."""

from collections.abc import Mapping
from typing import Any

from continual.backbones.families.causal import gpt2, llama, opt
from continual.backbones.families.encoder import bert, distilbert, electra, modernbert
from continual.backbones.families.family import Architecture, Family, FamilyFactory, resolve_places
from continual.backbones.families.seq2seq import bart, t5
from continual.errors import BackboneError

__all__ = ["FAMILIES", "Architecture", "Family", "family_of", "resolve_places"]

FAMILIES: Mapping[str, FamilyFactory] = {
    "bert": bert,
    "roberta": bert,
    "xlm-roberta": bert,
    "distilbert": distilbert,
    "electra": electra,
    "modernbert": modernbert,
    "gpt2": gpt2,
    "opt": opt,
    "llama": llama,
    "qwen2": llama,
    "qwen3": llama,
    "t5": t5,
    "bart": bart,
}


def family_of(config: Any) -> Family:
    """The family of a model with this transformers configuration.

    Raises BackboneError where the family has no table of sites yet.
    """
    if config.model_type not in FAMILIES:
        raise BackboneError(
            f"the backbone is of family {config.model_type!r}, which has no table of sites; "
            f"families with one: {', '.join(FAMILIES)}. Use a backbone of these, or add a table to FAMILIES"
        )
    return FAMILIES[config.model_type](config)
