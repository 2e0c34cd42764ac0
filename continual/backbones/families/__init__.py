"""The catalogue of model families; a new one is a table of sites, and one line here.

Another package registers one with an entry point of the group `continual.families` whose name is the `model_type` of
transformers.
"""

from typing import Any, cast

from transformers import PreTrainedConfig

from continual.backbones.families.causal import gpt2, gpt_neox, opt
from continual.backbones.families.encoder import bert, deberta_v2, distilbert, electra, modernbert, mpnet
from continual.backbones.families.family import Architecture, Family, FamilyFactory, resolve_places
from continual.backbones.families.llama import gemma2, gemma3, llama, llama4, olmo2, phi3, qwen3, qwen3_5, qwen3_moe
from continual.backbones.families.recognition import recognize
from continual.backbones.families.seq2seq import bart, marian, pegasus, t5
from continual.errors import BackboneError
from tasks.plugins import PluginRegistry

__all__ = ["FAMILIES", "Architecture", "Family", "family_of", "resolve_places", "text_configuration"]


def _check(plugin: object) -> FamilyFactory | str:
    return cast(FamilyFactory, plugin) if callable(plugin) else "a function of a transformers configuration to a Family"


FAMILIES = PluginRegistry[FamilyFactory](
    "family",
    "continual.families",
    check=_check,
    error=BackboneError,
    built_in={
        "bert": bert,
        "roberta": bert,
        "xlm-roberta": bert,
        "distilbert": distilbert,
        "electra": electra,
        "modernbert": modernbert,
        "mpnet": mpnet,
        "deberta-v2": deberta_v2,
        "gpt2": gpt2,
        "gpt_neox": gpt_neox,
        "opt": opt,
        "llama": llama,
        "mistral": llama,
        "smollm3": llama,
        "qwen2": llama,
        "qwen3": qwen3,
        "qwen3_moe": qwen3_moe,
        "qwen3_5_text": qwen3_5,
        "llama4_text": llama4,
        "phi3": phi3,
        "gemma2": gemma2,
        "gemma3_text": gemma3,
        "olmo2": olmo2,
        "t5": t5,
        "mt5": t5,
        "bart": bart,
        "marian": marian,
        "pegasus": pegasus,
    },
)


def family_of(config: Any) -> Family:
    """Return the family of a model with this transformers configuration.

    One without a table is recognised where it has exactly the modules of a Llama-shaped one.

    Raises:
        BackboneError: The family has no table of sites, and other modules than those that have one.
    """
    if config.model_type in FAMILIES:
        return FAMILIES[config.model_type](config)
    family = recognize(config, FAMILIES)
    if family is None:
        raise BackboneError(
            f"the backbone is of family {config.model_type!r}, which has no table of sites, and its modules are not "
            f"those of Llama; families with one: {', '.join(FAMILIES)}. Use a backbone of these, or add a table to "
            "FAMILIES"
        )
    return family


def text_configuration(config: Any) -> Any:
    """Return the configuration of the text model in one of several modalities; any other configuration itself."""
    inner = getattr(config, "text_config", None)
    return inner if isinstance(inner, PreTrainedConfig) and config.model_type not in FAMILIES else config
