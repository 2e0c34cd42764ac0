"""The methods there are. Adding one: a file with its settings and edits, and a line here.

A package of somebody else's adds one by an entry point of group `continual.methods`, which names its settings.
"""

import difflib
from collections.abc import Mapping
from inspect import isabstract
from typing import cast

from continual.deltas.adapter import Adapter, ParallelAdapter, PfeifferAdapter
from continual.deltas.bitfit import BitFit
from continual.deltas.composed import AdapterBitFit, MixAndMatch, ParallelComposition, SequentialComposition
from continual.deltas.diff_pruning import DiffPruning
from continual.deltas.dora import DoRA
from continual.deltas.full import Full, LastLayer, Probe, Selective
from continual.deltas.ia3 import IA3
from continual.deltas.intrinsic import Intrinsic
from continual.deltas.lora import LoRA
from continual.deltas.masking import BinaryMasking
from continual.deltas.method import MethodSettings, validate_settings
from continual.deltas.multi_head import MultiHeadAdapter
from continual.deltas.norms import LayerNorm
from continual.deltas.prefix import Prefix
from continual.deltas.prompt import Prompt
from continual.deltas.subspace import Subspace
from continual.errors import MethodError
from tasks import Method
from tasks.plugins import PluginRegistry

BUILT_IN: Mapping[str, type[MethodSettings]] = {
    "adapter": Adapter,
    "adapter_pfeiffer": PfeifferAdapter,
    "parallel_adapter": ParallelAdapter,
    "multi_head_adapter": MultiHeadAdapter,
    "prefix": Prefix,
    "prompt": Prompt,
    "ia3": IA3,
    "layer_norm": LayerNorm,
    "bitfit": BitFit,
    "last_layer": LastLayer,
    "selective": Selective,
    "diff_pruning": DiffPruning,
    "masking": BinaryMasking,
    "lora": LoRA,
    "dora": DoRA,
    "intrinsic": Intrinsic,
    "subspace": Subspace,
    "union": ParallelComposition,
    "sequential": SequentialComposition,
    "mam": MixAndMatch,
    "adapter_bitfit": AdapterBitFit,
    "full": Full,
    "probe": Probe,
}


def _settings_class(found: object) -> type[MethodSettings] | str:
    fits = isinstance(found, type) and issubclass(found, MethodSettings) and not isabstract(found)
    return cast(type[MethodSettings], found) if fits else "a subclass of continual.deltas.MethodSettings with `edits`"


METHODS: Mapping[str, type[MethodSettings]] = PluginRegistry(
    BUILT_IN, "continual.methods", check=_settings_class, error=MethodError
)


def method_settings(method: Method) -> MethodSettings:
    """The settings of the method that a stream file names.

    Raises MethodError for an unknown method or setting, or a value that is not allowed.
    """
    if method.name not in METHODS:
        near = difflib.get_close_matches(method.name, METHODS, n=1)
        hint = f"; did you mean {near[0]!r}" if near else ""
        raise MethodError(f"method {method.name!r} is not known{hint}. Known: {', '.join(METHODS)}")
    return validate_settings(METHODS[method.name], method)
