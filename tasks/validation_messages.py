"""Pydantic's validation errors as messages with the file's line numbers and keys."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Sequence
from datetime import date
from typing import Any

from pydantic import BaseModel, ValidationError

from tasks.plugins import closest_match
from tasks.source_spec import Source
from tasks.spec import Budget, TaskSpec
from tasks.template import Template
from tasks.yaml_document import YamlDocument

_MODELS: dict[str, type[BaseModel]] = {"tasks": TaskSpec, "source": Source, "budget": Budget, "template": Template}
_INTERNAL_FIELDS = {"folder"}  # set by the reader

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def validation_message(error: ValidationError, document: YamlDocument, root: type[BaseModel]) -> str:
    """Return all problems of a document, one line each.

    Such as `file:line: tasks[2].sorce: unknown key; did you mean 'source'? …`.

    Args:
        error: Pydantic's error.
        document: The file, for line numbers.
        root: The model that the document was validated against.
    """
    return "\n".join(_line(document, detail, root) for detail in error.errors(include_url=False))


def keyword_message(error: ValidationError, root: type[BaseModel], *, of: str) -> str:
    """Return all problems of arguments given in Python, one line each.

    Args:
        error: Pydantic's error.
        root: The model that the arguments were validated against.
        of: What they are arguments of, such as `task 'sst2'`.
    """
    details = ((_key_path(detail), detail) for detail in error.errors(include_url=False))
    return "\n".join(f"{of}: {dotted_path(path)}: {_explain(detail, path, root)}" for path, detail in details)


def unknown_key_message(key_path: Sequence[int | str], model: type[BaseModel]) -> str:
    """Return a message that the last key of `key_path` is unknown, with the nearest and all allowed keys."""
    allowed = [name for name in model.model_fields if name not in _INTERNAL_FIELDS]
    return f"unknown key; {key_hint(str(key_path[-1]), allowed)}allowed: {', '.join(allowed)}"


def key_hint(key: str, allowed: Collection[str]) -> str:
    """Return where an unknown key belongs among the allowed ones, or which of these is near; empty for neither.

    >>> key_hint("epochs", ["budget", "text"])
    "it belongs in 'budget'; "
    """
    section = next((name for name in allowed if name in _MODELS and key in _MODELS[name].model_fields), None)
    match = closest_match(key, allowed)
    return f"it belongs in {section!r}; " if section else f"did you mean {match!r}? " if match else ""


def dotted_path(key_path: Sequence[int | str]) -> str:
    """Return a path of keys and indices in dotted form.

    >>> dotted_path(("tasks", 2, "source"))
    'tasks[2].source'
    """
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in key_path]
    return "".join(steps).lstrip(".") or "the whole file"


def _line(document: YamlDocument, detail: Any, root: type[BaseModel]) -> str:
    key_path = _key_path(detail)
    explanation = _explain(detail, key_path, root)
    if detail["type"] == "string_type" and isinstance(detail["input"], bool | int | float | date):
        written = document.scalar(key_path) or str(detail["input"])  # YAML reads yes, 1 and 2024-01-01 as other types
        explanation += f'; quote it: "{written}"'
    return f"{document.path}:{document.line_of(key_path)}: {dotted_path(key_path)}: {explanation}"


def _key_path(detail: Any) -> tuple[int | str, ...]:
    return tuple(step for step in detail["loc"] if step != "[key]")


def _explain(detail: Any, key_path: tuple[int | str, ...], root: type[BaseModel]) -> str:
    if detail["type"] == "extra_forbidden":
        return unknown_key_message(key_path, _parent_model(key_path, root))
    if detail["type"] == "missing":
        return "missing; this key is required"
    if detail["type"] == "model_type":
        return f"should be a mapping of keys to values; got {_short_repr(detail['input'])}"
    message = detail["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:].replace("valid tuple", "list").replace("valid dictionary", "mapping")
    # The message of a rule about a whole mapping names the value already; printing the mapping would bury it.
    is_rule_of_mapping = detail["type"] == "value_error" and _is_nested(detail["input"])
    return message if is_rule_of_mapping else f"{message}; got {_short_repr(detail['input'])}"


def _short_repr(value: Any) -> str:
    try:
        return _short.repr(value)
    except ValueError:  # Python refuses to print a number of thousands of digits
        return "a number too long to show"


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(part, dict) for part in value))


def _parent_model(key_path: tuple[int | str, ...], root: type[BaseModel]) -> type[BaseModel]:
    keys = [step for step in key_path[:-1] if isinstance(step, str)]
    return _MODELS.get(keys[-1], root) if keys else root
