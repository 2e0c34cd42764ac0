"""Kinds of task; a new one is a file here and a line in `tasks.kind_schemas.KIND_SCHEMAS`."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, final

from pydantic import TypeAdapter, ValidationError

from continual.backbones.backbone import Backbone
from continual.deltas import Delta
from continual.errors import DeltaError
from continual.kinds.answer import Answer, answer_labels
from continual.kinds.classification import Classification
from continual.kinds.kind import (
    ForwardContext,
    HeadStart,
    Kind,
    Outputs,
    PreparedRows,
    backbone_for,
)
from continual.kinds.pooled_kind import PooledKind
from continual.kinds.template import TemplateClassification
from tasks import KIND_SCHEMAS, TaskData, TaskSpec
from tasks.errors import InputError

__all__ = [
    "KINDS",
    "Answer",
    "ForwardContext",
    "HeadStart",
    "Kind",
    "Outputs",
    "PooledKind",
    "PreparedRows",
    "answer_labels",
    "backbone_for",
    "kind_from_metadata",
    "kind_metadata",
    "kind_of",
    "kind_of_delta",
    "kind_of_spec",
]

TEMPLATE = "template"  # a classification whose spec has a template


@final
class _Implementations(Mapping[str, type[Kind[Any]]]):
    """The class of each kind in `KIND_SCHEMAS`, imported when it is first looked up, and `template`."""

    def __init__(self) -> None:
        self._loaded: dict[str, type[Kind[Any]]] = {TEMPLATE: TemplateClassification}

    def __getitem__(self, name: str) -> type[Kind[Any]]:
        if name not in self._loaded:
            self._loaded[name] = _load(name, KIND_SCHEMAS[name].implementation)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        yield from KIND_SCHEMAS
        yield TEMPLATE

    def __len__(self) -> int:
        return len(KIND_SCHEMAS) + 1


def _load(name: str, implementation: str) -> type[Kind[Any]]:
    module, _, attribute = implementation.partition(":")
    try:
        kind = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"kind {name!r} is implemented by {implementation!r}, which cannot be imported: {error}; "
            "mend or uninstall its package"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Kind)):
        raise InputError(f"kind {name!r} is implemented by {kind!r}, which is no subclass of continual.kinds.Kind")
    return kind


KINDS = _Implementations()
"""The kinds by name, those of installed packages included."""


def kind_of_spec(spec: TaskSpec) -> type[Kind[Any]]:
    """Return the class of a spec's kind."""
    return KINDS[TEMPLATE if spec.template else spec.kind]


def kind_of(backbone: Backbone, data: TaskData) -> Kind[Any]:
    """Return the kind of a task, fitted to its rows."""
    return kind_of_spec(data.spec).from_data(backbone, data)


def kind_metadata(kind: Kind[Any]) -> dict[str, Any]:
    """Return a kind as JSON for a delta's file; empty where the head's labels suffice."""
    settings = kind.settings()
    if not settings:
        return {}
    return {"name": next(name for name in KINDS if KINDS[name] is type(kind)), **settings}


def kind_of_delta(delta: Delta) -> Kind[Any]:
    """Return the kind that a delta was learned for.

    Raises:
        DeltaError: The delta's file states no kind that this version has.
    """
    if not delta.kind and delta.head is not None:
        return Classification(delta.head.labels)
    return kind_from_metadata(delta.kind)


def kind_from_metadata(metadata: Mapping[str, Any]) -> Kind[Any]:
    """Read what `kind_metadata` returned.

    Raises:
        DeltaError: This version has no such kind, or not with these settings.
    """
    settings = dict(metadata)
    try:
        return TypeAdapter(KINDS[settings.pop("name")]).validate_python(settings)
    except (KeyError, TypeError, ValidationError) as error:
        raise DeltaError(
            f"the delta is of kind {dict(metadata)}, which is none of {', '.join(KINDS)} as this version has them; "
            "use the version that learned it"
        ) from error
