"""What all models of what people write have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidatorFunctionWrapHandler, field_validator
from pydantic_core import PydanticCustomError


class StrictModel(BaseModel):
    """Frozen; an unknown key is an error, and so is `true` for a number, which pydantic alone reads as 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="wrap")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, read: ValidatorFunctionWrapHandler) -> Any:
        found = read(value)
        if _turned(value, found):
            raise PydanticCustomError("number", "should be a number, not true or false")
        return found


def _turned(value: Any, found: Any) -> bool:
    """Whether a truth value, or one inside of a list or mapping, was read as something else."""
    if isinstance(value, Mapping) and isinstance(found, Mapping):
        return any(_turned(own, found.get(key, own)) for key, own in value.items())
    if isinstance(value, list | tuple) and isinstance(found, list | tuple):
        return any(map(_turned, value, found))
    return isinstance(value, bool) and not isinstance(found, bool)
