"""A delta's edits as PEFT has them, and back; what differs from method to method stands in the methods' own files."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.backbones.families import Architecture
from continual.backbones.hub import hub_name
from continual.deltas import METHODS, Delta, MethodSettings
from continual.deltas.peft_format import MODULE_PREFIX, PeftAdapter, PeftFormat, PlacedModule
from continual.deltas.values import check_compatible, iterate_edits
from continual.errors import ExchangeError


@dataclass(frozen=True)
class BackboneModuleLayout:
    """Where edits are in one backbone. within: what stands before the names of its modules in the model of PEFT."""

    backbone: Backbone
    within: str = ""

    @cached_property
    def _names(self) -> Mapping[int, str]:
        return {id(module): self.within + name for name, module in self.backbone.model.named_modules()}

    def parts(self, settings: MethodSettings) -> tuple[PlacedModule, ...]:
        found = iterate_edits(self.backbone, settings)
        return tuple(PlacedModule(self._names[id(place.output_module)], key, place) for place, key, _ in found)

    def sites(self, modules: Iterable[str]) -> tuple[str, ...]:
        wanted, every = set(modules), self.backbone.modules_at("projections")
        found = dict.fromkeys(place.site for place in every if self._names[id(place.output_module)] in wanted)
        if not found:
            known = ", ".join(dict.fromkeys(self._names[id(place.output_module)] for place in every))
            raise ExchangeError(
                f"no tensor of the adapter is of a projection of backbone {self.backbone.name!r}: its modules are "
                f"{sorted(wanted)}, and the projections {known}. Import it on the model that it was trained on"
            )
        return ("projections",) if found.keys() == {place.site for place in every} else tuple(found)


_TASKS: Mapping[Architecture, str | None] = {"encoder": None, "causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}


def _within_language_model(backbone: Backbone) -> str:
    name = next(name for name, module in backbone.language_model.named_modules() if module is backbone.model)
    return f"{name}." if name else ""


def peft_methods() -> Mapping[str, type[PeftFormat]]:
    """The methods that PEFT has a form of, by name."""
    return {name: kind for name, kind in METHODS.items() if issubclass(kind, PeftFormat)}


def to_peft(backbone: Backbone, delta: Delta) -> PeftAdapter:
    """What `PeftModel.from_pretrained(AutoModel.from_pretrained(…), folder)` needs to compute the delta's states.

    Of a delta without a head it is the language model that PEFT puts it on: `AutoModelForCausalLM` and its kin.

    Raises ExchangeError for a method that PEFT has no form of, DeltaError for a delta of another backbone.
    """
    check_compatible(backbone, delta)
    if not isinstance(delta.settings, PeftFormat):
        raise ExchangeError(
            f"PEFT has no form of a {delta.method} delta; it has one of: {', '.join(peft_methods())}. "
            "Where the change is one of the weights, --format transformers writes a plain model"
        )
    layout = (
        BackboneModuleLayout(backbone)
        if delta.head
        else BackboneModuleLayout(backbone, _within_language_model(backbone))
    )
    own = delta.settings.to_peft(layout.parts(delta.settings), delta.values)
    common = {
        "base_model_name_or_path": hub_name(backbone.name),
        "inference_mode": True,
        "task_type": "FEATURE_EXTRACTION" if delta.head else _TASKS[backbone.architecture],
    }
    return PeftAdapter({**own.config, **common}, own.tensors)


def from_peft(backbone: Backbone, adapter: PeftAdapter) -> tuple[str, MethodSettings, dict[str, Tensor]]:
    """Method, settings and values of an adapter trained on this backbone's model.

    Raises ExchangeError for an adapter that no method here can say, or that does not fit: with the list of tensors.
    """
    prefix = f"{backbone.model.base_model_prefix}."
    inside = any(tensor.startswith(MODULE_PREFIX + prefix) for tensor in adapter.tensors)
    layout = BackboneModuleLayout(backbone, prefix if inside else "")
    for name, kind in METHODS.items():
        if not issubclass(kind, PeftFormat):
            continue
        try:
            found: tuple[Any, dict[str, Tensor]] | None = kind.from_peft(adapter, layout)
        except (ValidationError, KeyError, TypeError, ValueError, ArithmeticError, re.error) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ExchangeError(f"the adapter's settings cannot be read as PEFT's for {name}: {reason}") from error
        if found:
            return name, *found
    raise ExchangeError(
        f"the adapter is of peft_type {adapter.config.get('peft_type')!r}, for which there is no method here; "
        f"those that can be imported: {', '.join(peft_methods())}"
    )
