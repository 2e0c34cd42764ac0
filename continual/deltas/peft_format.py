"""PEFT's adapter format, without the parts of single methods.

The names of a method's tensors and settings in PEFT (Mangrulkar et al. 2022) are in the method's own file: a method
with a PEFT equivalent satisfies `PeftFormat`. Reading and writing of folders is in `continual.exchange`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from continual.backbones.sites import Place
from continual.deltas.method import MethodSettings
from continual.deltas.peft_patterns import match_pattern
from continual.deltas.protocols import Values
from continual.errors import ExchangeError

PROMPT_TENSOR_NAME = "prompt_embeddings"  # the one tensor of prefixes and prompts
MODULE_PREFIX = "base_model.model."  # stands before the names of the plain model's modules
_MODULE_TENSOR = re.compile(r"(.+)\.(?:lora|ia3|hada|lokr|oft|boft|vera|fourierft|tinylora)_\w+(?:\.weight)?")


@dataclass(frozen=True)
class PlacedModule:
    """One edit at one place, with the name of its module in the plain model.

    Attributes:
        module: Name in the plain model of the module that is changed, such as `encoder.layer.0.attention.self.query`.
        key: Prefix of the edit's value keys at the place, such as `layer.0.attn.q/0`.
        place: The place.
    """

    module: str
    key: str
    place: Place

    @property
    def rows(self) -> slice:
        """The outputs of the module that the edit changes."""
        return self.place.columns or slice(None)

    @property
    def outputs(self) -> int:
        """Number of outputs of the whole module."""
        return len(self.place.module_weight)


def by_module(parts: Iterable[PlacedModule]) -> dict[str, list[PlacedModule]]:
    """Group parts by module: several where one module computes several projections at once."""
    groups: dict[str, list[PlacedModule]] = defaultdict(list)
    for part in parts:
        groups[part.module].append(part)
    return dict(groups)


def split_module(tensor: str) -> str | None:
    """Return the module whose change by one of PEFT's methods a tensor holds; None for any other tensor.

    >>> split_module("encoder.layer.0.output.dense.lora_A.weight"), split_module("classifier.bias")
    ('encoder.layer.0.output.dense', None)
    """
    match = _MODULE_TENSOR.fullmatch(tensor)
    return match[1] if match else None


class ModuleLayout(Protocol):
    """The modules of one backbone at which a method's edits are."""

    def parts(self, settings: MethodSettings) -> tuple[PlacedModule, ...]:
        """Return every edit at every place, in order."""
        ...

    def projections(self) -> tuple[PlacedModule, ...]:
        """Return every projection of the blocks, in order; its `key` is the name of the place."""
        ...

    def fresh_values(self, settings: MethodSettings) -> dict[str, Tensor]:
        """Return the values by key, of the shapes of the method's forms, of a delta that has learned nothing."""
        ...

    def sites(self, modules: Iterable[str]) -> tuple[str, ...]:
        """Return the sites of the projections with these module names; `projections` where it is all of them."""
        ...


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter as PEFT saves it.

    Attributes:
        config: The object in `adapter_config.json`.
        tensors: The tensors of `adapter_model.safetensors` by name; their shapes depend on the method.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def require_tensors(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise ExchangeError, which lists all problems, unless names and shapes are exactly these.

        Raises:
            ExchangeError: Missing, unexpected or misshapen tensors.
        """
        actual = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        problems = [f"missing: {name} {list(shapes[name])}" for name in sorted(shapes.keys() - actual.keys())]
        problems += [
            f"of no place: {name} {list(actual[name])} ({_describe_tensor(name)})"
            for name in sorted(actual.keys() - shapes.keys())
        ]
        problems += [
            f"other shape: {name} {list(actual[name])}, not {list(shapes[name])}"
            for name in sorted(shapes.keys() & actual.keys())
            if actual[name] != shapes[name]
        ]
        if problems:
            raise ExchangeError(
                f"{len(problems)} tensors do not match the adapter's settings on this backbone. Allowed are those of "
                "one method at projections; import it on the model that it was trained on, changed nowhere else:\n  "
                + "\n  ".join(problems)
            )

    def require_supported_config(self, *supported: str) -> None:
        """Raise ExchangeError if a key outside `supported` and `NEUTRAL_CONFIG_KEYS` enables a feature.

        Args:
            supported: Config keys that the caller interprets.

        Raises:
            ExchangeError: Another key is True, or a list or object that is not empty.
        """
        active = {
            key: value
            for key, value in self.config.items()
            if key not in NEUTRAL_CONFIG_KEYS
            and key not in supported
            and (value is True or (value and isinstance(value, list | dict)))
        }
        if active:
            raise ExchangeError(
                f"the adapter uses features that are not supported: {active}; only the plain method can be imported"
            )

    def module_names(self) -> tuple[str, ...]:
        """Return the modules of the plain model that tensors here change, in order."""
        names = (name.removeprefix(MODULE_PREFIX) for name in self.tensors if name.startswith(MODULE_PREFIX))
        return tuple(dict.fromkeys(module for module in map(split_module, names) if module))

    def targets(self, module: str) -> bool:
        """Return whether the config puts the adapter at a projection of the plain model.

        The rules are those of `peft.tuners.tuners_utils.check_target_module_exists`. A config without `target_modules`,
        whose modules depend on the version of PEFT, targets none.

        Args:
            module: Name of a linear layer within the model's blocks, as in `PlacedModule`.
        """
        targets, layers = self.config.get("target_modules"), self.config.get("layers_to_transform")
        saved = self.config.get("modules_to_save") or ()
        if _matches(self.config.get("exclude_modules"), module) or any(
            match_pattern(rf"(^|.*\.){name}($|\..*)", module, pattern=name) for name in saved
        ):
            return False
        if isinstance(targets, str) and targets.lower() == "all-linear":
            return True
        is_named_in_full = not isinstance(targets, str) and module in (targets or ())
        if is_named_in_full or not _matches(targets, module) or isinstance(targets, str) or layers in (None, []):
            return _matches(targets, module)
        layer = _layer_number(module, self.config.get("layers_pattern"))
        return layer is not None and layer in ([layers] if isinstance(layers, int) else layers)


def _matches(names: str | Sequence[str] | None, module: str) -> bool:
    """Return whether a module is named: by a regular expression of its whole name, or by the last parts of it."""
    if not names:
        return False
    if isinstance(names, str):
        return match_pattern(rf"(?:{names})\Z", module, pattern=names) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _layer_number(module: str, patterns: str | Sequence[str] | None) -> int | None:
    """Return the first number in a module's name that is a part of it; behind one of `patterns`, if there are any."""
    if not patterns:
        match = re.match(r".*?\.[^.]*\.(\d+)\.", module)
        return int(match[1]) if match else None
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if match := match_pattern(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module, pattern=pattern):
            return int(match[1])
    return None


def _describe_tensor(name: str) -> str:
    """Return what a tensor that no method has stands for."""
    if ".lora_embedding_" in name:
        return "a low-rank change of an embedding"
    if split_module(name):
        return "at no projection of this backbone"
    return "a bias of the base" if name.endswith(".bias") else "a weight saved as a whole"


# Config keys without effect on the function that an adapter's tensors compute: the tensors show where the adapter is,
# and what its start did to the base is told by `init_lora_weights`.
NEUTRAL_CONFIG_KEYS = (
    "auto_mapping",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_ga_config",
    "modules_to_save",
    "target_modules",
)


@runtime_checkable
class PeftFormat(Protocol):
    """A method with an equivalent in PEFT."""

    def to_peft(self, layout: ModuleLayout, values: Values) -> PeftAdapter:
        """Convert values to PEFT's tensors and settings.

        Args:
            layout: The modules of the backbone.
            values: All values of a delta by key, of the shapes of the method's forms.

        Returns:
            An adapter whose `config` has the method's own settings only, without those common to all adapters.

        Raises:
            ExchangeError: PEFT's equivalent cannot express the values.
        """
        ...

    @classmethod
    def from_peft(cls, adapter: PeftAdapter, layout: ModuleLayout) -> tuple[MethodSettings, dict[str, Tensor]] | None:
        """Convert an adapter to settings and values with the same effect.

        Args:
            adapter: Config and tensors of any method of PEFT's.
            layout: The modules of the backbone.

        Returns:
            Settings, of this or of another method, and values by key, in float32 and of the shapes of its forms; None
            for an adapter of another method.

        Raises:
            ExchangeError: The tensors or settings do not fit.
        """
        ...
