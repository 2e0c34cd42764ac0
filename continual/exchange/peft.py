"""Convert deltas to PEFT adapters and back.

The parts that differ from method to method are in the methods' files (`continual.deltas.peft_format.PeftFormat`).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.backbones.families import Architecture
from continual.backbones.hub import hub_name, resolve_source
from continual.backbones.quantization import plain_name
from continual.backbones.site_names import contract_attentions
from continual.deltas import METHODS, Delta, MethodSettings
from continual.deltas.peft_format import PeftAdapter, PeftFormat, PlacedModule
from continual.deltas.values import check_compatible, init_values, iterate_edits
from continual.errors import ExchangeError
from continual.exchange.merging import merge_obstacle
from continual.exchange.unreached import split_adapter, wrapping_prefix


@dataclass(frozen=True)
class BackboneModuleLayout:
    """The modules of one backbone at which edits are, by the names of the model that PEFT wraps.

    Attributes:
        backbone: The backbone.
        prefix: Prefix of its modules' names in that model, such as `transformer.` in a language model.
    """

    backbone: Backbone
    prefix: str = ""

    @cached_property
    def _names(self) -> Mapping[int, str]:
        return {id(module): self.prefix + name for name, module in self.backbone.model.named_modules()}

    def parts(self, settings: MethodSettings) -> tuple[PlacedModule, ...]:
        """Return every edit at every place, in order."""
        edits = iterate_edits(self.backbone, settings)
        return tuple(PlacedModule(self._names[id(place.output_module)], key, place) for place, key, _ in edits)

    def projections(self) -> tuple[PlacedModule, ...]:
        """Return every projection of the blocks, in order; its `key` is the name of the place."""
        places = self.backbone.modules_at("projections")
        return tuple(PlacedModule(self._names[id(place.output_module)], place.name, place) for place in places)

    def fresh_values(self, settings: MethodSettings) -> dict[str, Tensor]:
        """Return the values by key, of the shapes of the method's forms, of a delta that has learned nothing."""
        return init_values(self.backbone, settings, seed=0)

    def sites(self, modules: Iterable[str]) -> tuple[str, ...]:
        """Return the sites of the projections with these module names; `projections` where it is all of them.

        Raises:
            ExchangeError: No projection has any of the names.
        """
        names, parts = set(modules), self.projections()
        of_all = tuple(dict.fromkeys(part.place.site for part in parts))
        sites = tuple(dict.fromkeys(part.place.site for part in parts if part.module in names))
        if not sites:
            projections = ", ".join(dict.fromkeys(part.module for part in parts))
            raise ExchangeError(
                f"no tensor of the adapter is of a projection of backbone {self.backbone.name!r}: its modules are "
                f"{sorted(names)}, and the projections {projections}. Import it on the model that it was trained on"
            )
        return ("projections",) if len(sites) == len(of_all) else contract_attentions(sites, of_all)


_TASK_TYPES: Mapping[Architecture, str | None] = {"encoder": None, "causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}


def language_model_prefix(backbone: Backbone) -> str:
    """Return the prefix of the backbone's module names in its language model."""
    name = next(name for name, module in backbone.language_model.named_modules() if module is backbone.model)
    return f"{name}." if name else ""


def peft_methods() -> Mapping[str, type[PeftFormat]]:
    """Return the methods with an equivalent in PEFT, by name."""
    return {name: method for name, method in METHODS.items() if issubclass(method, PeftFormat)}


def to_peft(backbone: Backbone, delta: Delta) -> PeftAdapter:
    """Convert a delta to the adapter that `PeftModel.from_pretrained(model, folder)` loads.

    `model` is `AutoModel.from_pretrained(…)` for a delta with a head, which then computes the delta's states; for a
    delta without one it is the language model, `AutoModelForCausalLM` or `AutoModelForSeq2SeqLM`.

    Raises:
        DeltaError: The delta is another backbone's.
        ExchangeError: PEFT has no equivalent of the method, or none on this model.
    """
    check_compatible(backbone, delta)
    if not isinstance(delta.settings, PeftFormat):
        obstacle = merge_obstacle(delta.settings)
        remedy = (
            f"No plain model computes the same either, since {obstacle}: learn the task by one of those to exchange it"
            if obstacle
            else "--format transformers writes a plain model with the change in its weights"
        )
        raise ExchangeError(
            f"PEFT has no form of a {delta.method} delta; it has one of: {', '.join(peft_methods())}. {remedy}"
        )
    layout = BackboneModuleLayout(backbone, "" if delta.head else language_model_prefix(backbone))
    adapter = delta.settings.to_peft(layout, delta.values)
    _require_own_modules(backbone, adapter)
    task_type = "FEATURE_EXTRACTION" if delta.head else _TASK_TYPES[backbone.architecture]
    base = {"base_model_name_or_path": hub_name(backbone.name)}
    return PeftAdapter({**adapter.config, **base, **common_config(backbone), "task_type": task_type}, adapter.tensors)


def common_config(backbone: Backbone) -> dict[str, Any]:
    """Return the settings that all adapters of a backbone have in common: its commit, and that they are trained."""
    commit = getattr(backbone.model.config, "_commit_hash", None)  # of a backbone from the hub
    return {**({"revision": commit} if commit else {}), "inference_mode": True}


def base_source(backbone: Backbone) -> str:
    """Return where another program finds the backbone: the path of its folder, or its hub id."""
    name, _ = plain_name(backbone.name)
    source = Path(resolve_source(name))
    return str(source.resolve()) if source.is_dir() else hub_name(name)


def _require_own_modules(backbone: Backbone, adapter: PeftAdapter) -> None:
    """Raise ExchangeError for LoRA of dense feed-forwards beside experts, which PEFT takes for LoRA of the experts."""
    if backbone.family.name != "qwen3_moe" or adapter.config["peft_type"] != "LORA":
        return
    if modules := [module for module in adapter.config["target_modules"] if ".mlp." in module]:
        raise ExchangeError(
            f"PEFT takes LoRA of {modules[0]}, in a layer without experts, for LoRA of the experts of other layers. "
            "Give sites of attention, as attn.q and attn.v; for a delta that was learned, --format transformers writes "
            "a plain model with the change in its weights"
        )


def from_peft(backbone: Backbone, adapter: PeftAdapter) -> tuple[str, MethodSettings, dict[str, Tensor]]:
    """Convert an adapter trained on this backbone's model.

    Tensors that no state depends on are left out, as `split_adapter` describes.

    Args:
        backbone: The backbone, with `generates` as the task needs it.
        adapter: The adapter.

    Returns:
        Name of the method, its settings, and its values by key, of the shapes that `init_values` gives for them.

    Raises:
        ExchangeError: No method is equivalent to the adapter, or its tensors, which are listed, or settings do not fit.
    """
    adapter = split_adapter(backbone, adapter).adapter
    layout = BackboneModuleLayout(backbone, wrapping_prefix(backbone, adapter))
    for name, method in METHODS.items():
        if not issubclass(method, PeftFormat):
            continue
        try:
            converted = method.from_peft(adapter, layout)
        except (ValidationError, KeyError, TypeError, ValueError, ArithmeticError, re.error) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ExchangeError(f"the adapter's settings cannot be read as PEFT's for {name}: {reason}") from error
        if converted:
            settings, values = converted
            return next(name for name, method in METHODS.items() if method is type(settings)), settings, values
    raise ExchangeError(
        f"the adapter is of peft_type {adapter.config.get('peft_type')!r}, for which there is no method here; "
        f"those that can be imported: {', '.join(peft_methods())}"
    )
