"""Pydantic's findings about a file, said in the words and with the line numbers of that file."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from tasks.spec import Budget, Source, TaskSpec
from tasks.template import Template
from tasks.yaml_document import YamlDocument

_MODELS: dict[str, type[BaseModel]] = {"tasks": TaskSpec, "source": Source, "budget": Budget, "template": Template}
_NOT_WRITTEN = {"folder"}  # set by the reader

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def validation_message(error: ValidationError, document: YamlDocument, root: type[BaseModel]) -> str:
    """All problems of a document, one line each: `file:line: tasks[2].sorce: unknown key; did you mean 'source'? …`."""
    return "\n".join(_line(document, found, root) for found in error.errors(include_url=False))


def unknown_key_message(place: Sequence[int | str], model: type[BaseModel]) -> str:
    """Says that the last key of `place` is not one of `model`, which keys are, and which was probably meant."""
    allowed = [name for name in model.model_fields if name not in _NOT_WRITTEN]
    near = difflib.get_close_matches(str(place[-1]), allowed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown key; {hint}allowed: {', '.join(allowed)}"


def dotted_path(place: Sequence[int | str]) -> str:
    """A place in a document as people write it.

    >>> dotted(("tasks", 2, "source"))
    'tasks[2].source'
    """
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in place]
    return "".join(steps).lstrip(".") or "the whole file"


def _line(document: YamlDocument, found: Any, root: type[BaseModel]) -> str:
    place = tuple(step for step in found["loc"] if step != "[key]")
    return f"{document.path}:{document.line_of(place)}: {dotted_path(place)}: {_said(found, place, root)}"


def _said(found: Any, place: tuple[int | str, ...], root: type[BaseModel]) -> str:
    if found["type"] == "extra_forbidden":
        return unknown_key_message(place, _parent(place, root))
    if found["type"] == "missing":
        return "missing; this key is required"
    if found["type"] == "model_type":
        return f"should be a mapping of keys to values; got {_shown(found['input'])}"
    message = found["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:].replace("valid tuple", "list").replace("valid dictionary", "mapping")
    # A rule about a whole mapping names the value itself; the mapping would only bury it.
    part_of_a_whole = found["type"] == "value_error" and _is_nested(found["input"])
    return message if part_of_a_whole else f"{message}; got {_shown(found['input'])}"


def _shown(value: Any) -> str:
    try:
        return _short.repr(value)
    except ValueError:  # Python refuses to print a number of thousands of digits
        return "a number too long to show"


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(part, dict) for part in value))


def _parent(place: tuple[int | str, ...], root: type[BaseModel]) -> type[BaseModel]:
    keys = [step for step in place[:-1] if isinstance(step, str)]
    return _MODELS.get(keys[-1], root) if keys else root
