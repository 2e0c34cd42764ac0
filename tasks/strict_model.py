"""The common base of the pydantic models of user-written files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidatorFunctionWrapHandler, field_validator
from pydantic_core import PydanticCustomError


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
