"""Kinds of task: for each, one file. Adding one is its file, a line here and its needs in `tasks.needs`."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from continual.backbones.backbone import Backbone
from continual.deltas import Delta
from continual.errors import DeltaError
from continual.kinds.classification import Classification
from continual.kinds.generation import Generation
from continual.kinds.kind import (
    Answer,
    ForwardContext,
    HeadStart,
    Kind,
    Outputs,
    PooledKind,
    PreparedRows,
    TokenCallback,
    answer_labels,
    backbone_for,
)
from continual.kinds.regression import Regression
from continual.kinds.span import Span
from continual.kinds.template import TemplateClassification
from tasks import TaskData, TaskSpec

__all__ = [
    "KINDS",
    "Answer",
    "ForwardContext",
    "HeadStart",
    "Kind",
    "Outputs",
    "PooledKind",
    "PreparedRows",
    "TokenCallback",
    "answer_labels",
    "backbone_for",
    "kind_from_metadata",
    "kind_metadata",
    "kind_of",
    "kind_of_delta",
    "kind_of_spec",
]

KINDS: Mapping[str, type[Kind[Any]]] = {
    "classification": Classification,
    "regression": Regression,
    "span": Span,
    "generation": Generation,
    "template": TemplateClassification,
}
_NAMES = {kind: name for name, kind in KINDS.items()}


def kind_of_spec(spec: TaskSpec) -> type[Kind[Any]]:
    """The kind of a task as it is written down."""
    return KINDS["template" if spec.template else spec.kind]


def kind_of(backbone: Backbone, data: TaskData) -> Kind[Any]:
    """The kind of a task with its rows."""
    return kind_of_spec(data.spec).from_data(backbone, data)


def kind_metadata(kind: Kind[Any]) -> dict[str, Any]:
    """What a delta's file says of its kind."""
    settings = kind.settings()
    return {"name": _NAMES[type(kind)], **settings} if settings else {}


def kind_of_delta(delta: Delta) -> Kind[Any]:
    """The kind that a delta was learned for.

    Raises DeltaError where its file says nothing that this version understands.
    """
    if not delta.kind and delta.head is not None:
        return Classification(delta.head.labels)
    return kind_from_metadata(delta.kind)


def kind_from_metadata(said: Mapping[str, Any]) -> Kind[Any]:
    """The kind that `stored` wrote. Raises DeltaError where this version does not understand it."""
    settings = dict(said)
    try:
        kind = KINDS[settings.pop("name")]
        found: Kind[Any] = TypeAdapter(kind).validate_python(settings)
    except (KeyError, ValidationError) as error:
        raise DeltaError(
            f"the delta is of kind {dict(said)}, which is none of {', '.join(KINDS)} as this version has them; "
            "use the version that learned it"
        ) from error
    return found
