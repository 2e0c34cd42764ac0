"""What PEFT makes of methods, the common part: what it calls a method's tensors stands in the method's own file."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor

from continual.backbones.sites import Place
from continual.deltas.method import MethodSettings
from continual.deltas.protocols import Values
from continual.errors import ExchangeError

PROMPT_TENSOR_NAME = "prompt_embeddings"  # the one tensor of prefixes and prompts
MODULE_PREFIX = "base_model.model."  # stands before the names of the plain model's modules


@dataclass(frozen=True)
class PlacedModule:
    """One edit at one place.

    module: the name in the plain model of the module that is changed · key: what stands before the names of the edit's
    values there, `layer.0.attn.q/0`.
    """

    module: str
    key: str
    place: Place

    @property
    def rows(self) -> slice:
        """Which of the module's outputs it changes."""
        return self.place.columns or slice(None)

    @property
    def outputs(self) -> int:
        """How many outputs the module has."""
        return len(self.place.module_weight)


def by_module(parts: Iterable[PlacedModule]) -> dict[str, list[PlacedModule]]:
    """The parts of each module: several where it computes several projections at once."""
    found: dict[str, list[PlacedModule]] = defaultdict(list)
    for part in parts:
        found[part.module].append(part)
    return dict(found)


class ModuleLayout(Protocol):
    """Where a method's edits are in one backbone."""

    def parts(self, settings: MethodSettings) -> tuple[PlacedModule, ...]:
        """Every edit at every place, in order."""
        ...

    def sites(self, modules: Iterable[str]) -> tuple[str, ...]:
        """The sites that projections of these names play, `projections` where it is all of them."""
        ...


@dataclass(frozen=True)
class PeftAdapter:
    """A folder of PEFT's: the object in `adapter_config.json` and the tensors of `adapter_model.safetensors`."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def require_tensors(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise ExchangeError, with a list, unless the tensors have these names and shapes, and there is no other."""
        found = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        problems = [f"missing: {name} {list(shapes[name])}" for name in sorted(shapes.keys() - found.keys())]
        problems += [f"of no place: {name} {list(found[name])}" for name in sorted(found.keys() - shapes.keys())]
        problems += [
            f"other shape: {name} {list(found[name])}, not {list(shapes[name])}"
            for name in sorted(shapes.keys() & found.keys())
            if found[name] != shapes[name]
        ]
        if problems:
            raise ExchangeError(
                f"{len(problems)} tensors are not what the adapter's settings mean on this backbone; "
                "import it on the model that it was trained on, changed nowhere else:\n  " + "\n  ".join(problems)
            )

    def require_supported_config(self, *known: str) -> None:
        """Raise ExchangeError where a setting that is not among the known ones switches something on."""
        on = {key: value for key, value in self.config.items() if key not in NEUTRAL_CONFIG_KEYS and key not in known}
        if on := {
            key: value for key, value in on.items() if value is True or (value and isinstance(value, list | dict))
        }:
            raise ExchangeError(f"the adapter needs what is not known here: {on}; only its plain form can be imported")

    def module_names(self) -> tuple[str, ...]:
        """The modules of the plain model that have tensors here, in order."""
        found = (
            re.fullmatch(rf"{re.escape(MODULE_PREFIX)}(.+)\.(?:lora_\w+|ia3_l)(?:\.weight)?", name)
            for name in self.tensors
        )
        return tuple(dict.fromkeys(match[1] for match in found if match))


# What says nothing of what an adapter computes beside its tensors.
NEUTRAL_CONFIG_KEYS = (
    "auto_mapping",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "target_modules",
)


@runtime_checkable
class PeftFormat(Protocol):
    """A method that PEFT has a form of."""

    def to_peft(self, parts: Sequence[PlacedModule], values: Values) -> PeftAdapter:
        """The values as PEFT has them; `config` holds what is the method's own.

        Raises ExchangeError where PEFT's form cannot say it.
        """
        ...

    @classmethod
    def from_peft(cls, adapter: PeftAdapter, layout: ModuleLayout) -> tuple[Self, dict[str, Tensor]] | None:
        """Settings and values that do the same; None for an adapter of another method.

        Raises ExchangeError where the tensors do not fit.
        """
        ...
