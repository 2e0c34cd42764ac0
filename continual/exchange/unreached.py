"""Split an adapter's tensors into those that change a backbone's states, and those behind or beside them.

Adapters are often trained on a model with more than the backbone: a pooler, a classifier, a decoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas.peft_format import MODULE_PREFIX, PeftAdapter, split_module

# Modules that transformers puts behind a plain model, for adapters whose names have no prefix of the plain model.
HEAD_MODULES = ("classifier", "score", "pre_classifier", "classification_head", "qa_outputs")
POOLER = "a pooler reads the last states, and the backbone has none"
DECODER = "a task that is answered from the encoder's states runs no decoder"
HEAD = "a head reads the last states, and the task has its own"


@dataclass(frozen=True)
class SplitAdapter:
    """An adapter without the tensors that no state depends on.

    Attributes:
        adapter: The adapter with the other tensors.
        heads: Tensors of the modules behind the plain model, of any shapes, by name in the model that PEFT wrapped.
        unreached: Modules whose tensors were left out, heads included, by the reason.
    """

    adapter: PeftAdapter
    heads: Mapping[str, Tensor]
    unreached: Mapping[str, tuple[str, ...]]


def wrapping_prefix(backbone: Backbone, adapter: PeftAdapter) -> str:
    """Return the prefix of the plain model's modules in the model that PEFT wrapped, such as `bert.`, or nothing."""
    prefix = f"{backbone.model.base_model_prefix}."
    return prefix if any(name.startswith(MODULE_PREFIX + prefix) for name in adapter.tensors) else ""


def split_adapter(backbone: Backbone, adapter: PeftAdapter) -> SplitAdapter:
    """Leave out the tensors that no state depends on.

    These are the pooler's and, unless the language model itself answers, those of the heads behind the plain model and
    of an encoder-decoder's decoder.

    Args:
        backbone: The backbone, with `generates` as the task needs it.
        adapter: The adapter.
    """
    prefix, reached = wrapping_prefix(backbone, adapter), dict(adapter.tensors)
    heads: dict[str, Tensor] = {}
    unreached: dict[str, tuple[str, ...]] = {}
    for key in adapter.tensors:
        name = key.removeprefix(MODULE_PREFIX)
        if key != name and (reason := _reason(backbone, name, prefix)):
            tensor, module = reached.pop(key), module_of(name)
            unreached[reason] = tuple(dict.fromkeys((*unreached.get(reason, ()), module)))
            heads |= {name: tensor} if reason == HEAD else {}
    return SplitAdapter(replace(adapter, tensors=reached), heads, unreached)


def module_of(name: str) -> str:
    """Return the module that a tensor belongs to.

    >>> module_of("bert.pooler.dense.lora_A.weight"), module_of("classifier.bias")
    ('bert.pooler.dense', 'classifier')
    """
    return split_module(name) or name.rpartition(".")[0]


def _reason(backbone: Backbone, name: str, prefix: str) -> str | None:
    """Return why no state depends on a tensor; None where one may."""
    first, second = (*name.removeprefix(prefix).split("."), "")[:2]
    is_wrapped = not prefix or name.startswith(prefix)
    if is_wrapped and first == "pooler":
        return POOLER
    if backbone.generates:
        return None
    if is_wrapped and backbone.family.decoder and first in ("decoder", "lm_head"):
        return DECODER
    return HEAD if not is_wrapped or (not prefix and first in HEAD_MODULES and second) else None
