"""The common base of the pydantic models of user-written files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidatorFunctionWrapHandler, field_validator
from pydantic_core import PydanticCustomError

from tasks.errors import InputError

ModelT = TypeVar("ModelT", bound="StrictModel")


class StrictModel(BaseModel):
    """Base model: frozen; unknown keys are errors, and so is `true` in place of a number (pydantic: 1)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="wrap")
    @classmethod
    def _reject_bool_as_number(cls, value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        validated = validate(value)
        if _bool_was_converted(value, validated):
            raise PydanticCustomError("number", "should be a number, not true or false")
        return validated


def _bool_was_converted(value: Any, validated: Any) -> bool:
    """Return True if a bool in `value`, at any depth, was converted to another type in `validated`."""
    if isinstance(value, Mapping) and isinstance(validated, Mapping):
        return any(_bool_was_converted(item, validated.get(key, item)) for key, item in value.items())
    if isinstance(value, list | tuple) and isinstance(validated, list | tuple):
        return any(map(_bool_was_converted, value, validated))
    return isinstance(value, bool) and not isinstance(validated, bool)


def validate_settings(
    model: type[ModelT], values: Mapping[str, Any], *, of: str, error: type[InputError] = InputError
) -> ModelT:
    """Validate the settings of a named plugin.

    Args:
        model: The class of the settings.
        values: The settings as a person wrote them.
        of: What they are settings of, such as `method 'lora'`, for the message.
        error: The class of the error.

    Raises:
        InputError: A setting is unknown or not allowed; the message names every setting and its default.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as invalid:
        problems = "; ".join(
            f"{'.'.join(map(str, detail['loc']))} = {detail['input']!r}: {detail['msg']}" for detail in invalid.errors()
        )
        fields = (f"{name} (default {field.default!r})" for name, field in model.model_fields.items())
        raise error(f"{of}: {problems}. Settings: {', '.join(fields) or 'none'}") from None
