"""Methods of fine-tuning: the settings that a stream file holds, and the edits that follow from them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from inspect import isabstract
from typing import Annotated, Any, ClassVar, cast

from pydantic import Field, model_validator

from continual.deltas.edit import Edit
from continual.deltas.protocols import IdentityAtInit
from continual.errors import MethodError
from tasks import Method, StrictModel
from tasks.plugins import PluginRegistry
from tasks.strict_model import validate_settings

Preset = Mapping[str, Any]
"""Settings by their names."""
Rank = Annotated[int, Field(ge=1, le=4096)]
Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Sites = Annotated[tuple[str, ...], Field(min_length=1)]
"""Names of sites or of groups of them."""


class MethodSettings(StrictModel, ABC):
    """Settings of one method; a subclass adds its fields and returns the edits that they describe.

    Attributes:
        PRESETS: Settings under a name, which `preset: NAME` chooses beside other settings; `paper` are the paper's.
    """

    PRESETS: ClassVar[Mapping[str, Preset]] = {"paper": {}}

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, settings: Any) -> Any:
        if not isinstance(settings, Mapping) or "preset" not in settings:
            return settings
        if settings["preset"] not in cls.PRESETS:
            raise ValueError(f"preset {settings['preset']!r} does not exist; there are: {', '.join(cls.PRESETS)}")
        chosen = {name: value for name, value in settings.items() if name != "preset"}
        return {**cls.PRESETS[settings["preset"]], **chosen}

    @abstractmethod
    def edits(self) -> tuple[Edit, ...]:
        """Return the edits, in the order in which they are applied."""

    @classmethod
    def upgrade(cls, settings: Mapping[str, Any], *, generates: bool) -> dict[str, Any]:
        """Return the settings by which this release computes what the release that stored them computed.

        Up to format 2 `attn` stood for self-attention alone. A method whose definition changed since overrides this.

        Args:
            settings: As stored in a delta of format 2 or older.
            generates: Whether the delta has values in a decoder with cross-attention.
        """
        if not generates:
            return dict(settings)
        return {
            name: [site.replace("attn", "self", 1) if site.startswith("attn") else site for site in value]
            if name in ("sites", "blocks")
            else value
            for name, value in settings.items()
        }

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


def upgrade_part(part: Any, *, generates: bool) -> dict[str, Any]:
    """Return a method within the settings of another, as stored in format 2, upgraded by `MethodSettings.upgrade`."""
    method = Method.model_validate(part)
    return {"name": method.name, **METHODS.lookup(method.name).upgrade(method.settings, generates=generates)}
