"""What every method is: settings that a person writes, and the edits that follow from them."""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from inspect import isabstract
from typing import TypeVar, cast

from pydantic import ValidationError

from continual.deltas.edit import Edit
from continual.deltas.protocols import IdentityAtInit
from continual.errors import MethodError
from tasks import Method, StrictModel
from tasks.plugins import PluginRegistry

SettingsT = TypeVar("SettingsT", bound=StrictModel)


class MethodSettings(StrictModel, ABC):
    """Settings of one method. A subclass adds its fields and says which edits they mean."""

    @abstractmethod
    def edits(self) -> tuple[Edit, ...]:
        """The edits, in the order in which they are applied."""

    @property
    def identity(self) -> IdentityAtInit:
        """How nearly a fresh delta leaves the backbone's output as it was."""
        found = {edit.form.identity for edit in self.edits()}
        return "none" if "none" in found else "near" if "near" in found else "exact"

    @property
    def stages(self) -> int:
        """How many stages of training there are, one after the other."""
        return 1 + max((stage for edit in self.edits() for stage in edit.stages), default=0)

    @property
    def added_tokens(self) -> int:
        """How many of a backbone's positions are taken from the text."""
        return sum(edit.added_tokens for edit in self.edits())


def validate_settings(kind: type[SettingsT], method: Method) -> SettingsT:
    """The settings of a method as a stream file has them, as a `kind`.

    Raises MethodError for a setting that is not known or not allowed, naming those there are.
    """
    try:
        return kind.model_validate(method.settings)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in error.errors())
        fields = (f"{name} (default {field.default!r})" for name, field in kind.model_fields.items())
        raise MethodError(f"method {method.name!r}: {problems}. Settings: {', '.join(fields) or 'none'}") from None


def _settings_class(found: object) -> type[MethodSettings] | str:
    fits = isinstance(found, type) and issubclass(found, MethodSettings) and not isabstract(found)
    return cast(type[MethodSettings], found) if fits else "a subclass of continual.deltas.MethodSettings with `edits`"


BUILT_IN: dict[str, type[MethodSettings]] = {}  # filled by `continual.deltas.methods.catalog`
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
