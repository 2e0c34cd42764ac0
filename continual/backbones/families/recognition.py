"""Recognise a family without a table by its modules and by what its layers add, as that of a family with a table."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from continual.backbones.base_model import base_model
from continual.backbones.families.family import Family, FamilyFactory, resolve_places
from continual.backbones.sites import Place
from continual.errors import BackboneError

LAYERS_OF_LLAMA = ("llama", "qwen3", "phi3", "gemma2", "gemma3_text", "olmo2")  # the tables that are tried, in order
_TOKENS = 3  # of the text that is run through the layers
_ROUNDINGS = 4  # that a sum may differ by, relative to its largest entry


def recognize(config: Any, tables: Mapping[str, FamilyFactory]) -> Family | None:
    """Return the family of a causal language model whose modules are exactly those of a table.

    The model is built without weights. What its layers compute is left to `require_residual_sums`.

    Args:
        config: Its transformers configuration.
        tables: The tables, by `model_type`.

    Returns:
        The family, with `recognized_as`; None where the modules are other ones.
    """
    try:
        with torch.device("meta"):
            stack = base_model(AutoModelForCausalLM.from_config(config, trust_remote_code=False))
        families = {name: tables[name](config) for name in LAYERS_OF_LLAMA}
    except (ValueError, TypeError, AttributeError, KeyError, ImportError):  # no such model, or no such sizes
        return None
    for name, family in families.items():
        if _has_modules(stack, family):
            return replace(_through_interface(stack, family), recognized_as=name)
    return None


def _has_modules(stack: Any, family: Family) -> bool:
    """Return whether all sites have modules, of the usual types, and all modules with parameters are sites."""
    try:
        places = [
            place for site in family.stack.sites for place in resolve_places(stack, family, site, generates=False)
        ]
    except (BackboneError, AttributeError):  # a module, or its weight, is not there
        return False
    types: Mapping[str, type[nn.Module]] = {
        "projections": nn.Linear,
        "embeddings": nn.Embedding,
        "norms": nn.Module,
        "": nn.Module,
    }
    groups = {name: site.group for name, site in family.stack.sites.items()}
    reached = {place.output_module for place in places if groups[place.site]}
    owners = {module for module in stack.modules() if any(True for _ in module.parameters(recurse=False))}
    return owners == reached and all(isinstance(p.output_module, types.get(groups[p.site], nn.Module)) for p in places)


def _through_interface(stack: Any, family: Family) -> Family:
    """Leave out keys and values where the attention does not go through transformers' AttentionInterface."""
    attention = resolve_places(stack, family, "attn.kv", generates=False)[0].output_module
    if hasattr(sys.modules[type(attention).__module__], "ALL_ATTENTION_FUNCTIONS"):
        return family
    sites = {name: site for name, site in family.stack.sites.items() if name != "attn.kv"}
    absent = {"attn.kv": "its attention does not go through transformers' AttentionInterface"}
    return replace(family, stack=replace(family.stack, sites=sites), absent=absent)


@torch.no_grad()
def require_residual_sums(stack: Any, family: Family) -> None:
    """Run a short text and compare the residual stream with the sums r + y of what the blocks take and return.

    Args:
        stack: The layers, with their weights, in eval mode.
        family: The family that was recognised by its modules.

    Raises:
        BackboneError: A layer computes something else, such as a scaled sum.
    """
    sites = [resolve_places(stack, family, site, generates=False) for site in ("attn", "ffn")]
    blocks = [place for layer in zip(*sites, strict=True) for place in layer]
    streams, outputs = _run(stack, family, blocks)
    for place, output, (before, behind) in zip(blocks, outputs, pairwise(streams), strict=True):
        total = before + output.to(before.device)
        precision = max(torch.finfo(part.dtype).eps for part in (before, output, behind))
        tolerance = max(_ROUNDINGS * precision, 1e-4) * float(total.abs().max())
        if not torch.allclose(total.float(), behind.to(total.device).float(), rtol=0, atol=tolerance):
            raise BackboneError(
                f"the backbone is of family {family.name!r}, which has no table of sites. Its modules are named as "
                f"those of {family.recognized_as!r}, but {place.name} is not added to the residual stream as it is: "
                "use another backbone, or add a table to FAMILIES"
            )


def _run(stack: Any, family: Family, blocks: Sequence[Place]) -> tuple[list[Tensor], list[Tensor]]:
    """The residual stream in front of each block and behind the last, and what each block returns."""
    streams: list[Tensor] = []
    outputs: list[Tensor] = []
    last = stack.get_submodule(family.stack.layer_path.format(family.stack.num_layers - 1))

    def take_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        streams.append(args[0])

    def take_output(module: nn.Module, args: object, output: Tensor) -> None:
        outputs.append(output)

    def take_stream(module: nn.Module, args: object, output: Any) -> None:
        streams.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as undo:
        for place in blocks:
            undo.enter_context(place.residual_module.register_forward_pre_hook(take_input))
            undo.enter_context(place.output_module.register_forward_hook(take_output))
        undo.enter_context(last.register_forward_hook(take_stream))
        device = next(blocks[0].input_module.parameters()).device
        stack(input_ids=torch.arange(_TOKENS, device=device)[None], use_cache=False)
    return streams, outputs
