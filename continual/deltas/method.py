"""Methods of fine-tuning: the settings that a stream file holds, and the edits that follow from them."""

from abc import ABC, abstractmethod
from inspect import isabstract
from typing import cast

from continual.deltas.edit import Edit
from continual.deltas.protocols import IdentityAtInit
from continual.errors import MethodError
from tasks import Method, StrictModel
from tasks.plugins import PluginRegistry
from tasks.strict_model import validate_settings


class MethodSettings(StrictModel, ABC):
    """Settings of one method; a subclass adds its fields and returns the edits that they describe."""

    @abstractmethod
    def edits(self) -> tuple[Edit, ...]:
        """Return the edits, in the order in which they are applied."""

    @property
    def identity(self) -> IdentityAtInit:
        """The accuracy to which a fresh delta leaves the backbone's output unchanged: the lowest of its forms."""
        identities = {edit.form.identity for edit in self.edits()}
        return "none" if "none" in identities else "near" if "near" in identities else "exact"

    @property
    def stages(self) -> int:
        """The number of consecutive training stages."""
        return 1 + max((stage for edit in self.edits() for stage in edit.stages), default=0)

    @property
    def added_tokens(self) -> int:
        """The number of the backbone's positions that the method takes from the text."""
        return sum(edit.added_tokens for edit in self.edits())


def _check_settings_class(plugin: object) -> type[MethodSettings] | str:
    fits = isinstance(plugin, type) and issubclass(plugin, MethodSettings) and not isabstract(plugin)
    return cast(type[MethodSettings], plugin) if fits else "a subclass of continual.deltas.MethodSettings with `edits`"


METHODS = PluginRegistry[type[MethodSettings]](
    "method", "continual.methods", check=_check_settings_class, error=MethodError
)
"""The methods by name; `continual.deltas.methods.catalog` registers the built-in ones."""


def method_settings(method: Method) -> MethodSettings:
    """Return the settings of the method that a stream file names.

    Raises:
        MethodError: The method or a setting does not exist, or a value is not allowed.
    """
    settings = METHODS.lookup(method.name)
    return validate_settings(settings, method.settings, of=f"method {method.name!r}", error=MethodError)
