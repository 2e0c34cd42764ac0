"""Import: a folder of PEFT's as a new version of a task's delta."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from continual.backbones.backbone import Backbone
from continual.backbones.hub import hub_name
from continual.deltas import Delta, Head, MethodSettings
from continual.deltas.values import check_compatible
from continual.errors import ExchangeError
from continual.exchange.files import ExportOrigin, read_adapter, read_head
from continual.exchange.peft import from_peft
from continual.inference.task_statistics import store_signature, task_signature
from continual.kinds import (
    ForwardContext,
    Kind,
    answer_labels,
    backbone_for,
    kind_from_metadata,
    kind_metadata,
    kind_of,
)
from continual.kinds.classification import Classification
from continual.kinds.regression import Regression
from continual.kinds.template import TemplateClassification
from continual.learning.champion_contest import contest_champion
from continual.learning.prepared import PreparedTask, prepare_task
from continual.learning.record import backbone_record, data_record, delta_record, task_record
from continual.metrics import score_with_interval
from registry import IMPORTED, Parent, Registry, Score, SignatureRecord, TaskRecord
from registry.errors import NotFound
from tasks import Budget, Method, TaskData


def import_delta(
    backbone: Backbone, registry: Registry, folder: Path, *, task: str, data: TaskData | None = None
) -> str:
    """Register what PEFT saved in a folder as the next version of a task's delta; its name.

    The task must be registered, with the labels of the folder's head; nothing is measured then, so that a champion
    that was measured stays. With the task's rows, `data`, the delta is scored on them, and a folder without a head gets
    the one that its kind of task starts with.

    Raises NotFound for the task, ExchangeError for a folder that does not fit the backbone or the task.
    """
    adapter, origin = read_adapter(folder)
    _require_base(backbone, adapter.config.get("base_model_name_or_path"), origin)
    known = registry.task(task) if data is None else task_record(data)
    head = read_head(folder, hidden_size=backbone.hidden_size)
    kind = _kind(backbone, known, origin, head=head, data=data)
    own = backbone_for(backbone, kind)
    method, settings, values = from_peft(own, adapter)
    rows = None if data is None else prepare_task(backbone, _learned_so(data, method, settings))
    if rows:
        own, kind = rows.backbone, rows.kind
    delta = Delta(method, settings, backbone.fingerprint, values, _own_head(kind, own, head), kind_metadata(kind))
    check_compatible(own, delta)
    if rows and delta.head and not head:
        start = kind.closed_form_start(
            ForwardContext(own, delta, rows.train), ForwardContext(own, delta, rows.validation)
        )
        delta = replace(delta, head=start.head)
    answered = kind.labels if isinstance(kind, Classification | TemplateClassification) else ()
    known = replace(known, labels=answered)
    return _register(own, registry, delta, known=known, rows=rows, parents=_parents(registry, origin))


def _require_base(backbone: Backbone, base: str | None, origin: ExportOrigin | None) -> None:
    """Raises ExchangeError for an adapter of another model: by its fingerprint, or else the last part of its name."""
    if origin is not None:
        if origin.backbone != backbone.fingerprint:
            raise ExchangeError(
                f"the adapter was exported from backbone {origin.backbone[:12]} ({base}), and {backbone.name!r} is "
                f"{backbone.fingerprint[:12]}; name the backbone that it was trained on (--backbone)"
            )
        return
    names = {_last(name) for name in (backbone.name, hub_name(backbone.name), backbone.model.name_or_path)}
    if base and _last(base) not in names:
        raise ExchangeError(
            f"the adapter was trained on {base!r}, and the backbone is {backbone.name!r}; name the one that it was "
            "trained on (--backbone) or, if these are the same weights, make base_model_name_or_path null in "
            "adapter_config.json"
        )


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()


def _kind(
    backbone: Backbone, task: TaskRecord, origin: ExportOrigin | None, *, head: Head | None, data: TaskData | None
) -> Kind[Any]:
    """What the delta answers: as the rows say it or, without them, the export; a head alone says it of classification.

    Raises ExchangeError where nothing says it, or where it is not what the task asks for.
    """
    if data is not None:
        return kind_of(backbone, data)
    if origin and origin.kind:
        kind = kind_from_metadata(origin.kind)
    elif head and task.kind == "classification":
        labels = tuple(label for label in task.labels if label in head.labels)  # an earlier version may have had fewer
        kind = Classification(labels if len(labels) == len(head.labels) else task.labels)
    else:
        raise ExchangeError(
            f"the folder has no head (head.safetensors, head.json) that says what a {task.kind} delta answers, and the "
            "registry keeps no rows to make one of; give the task's rows (--rows TASK.yaml)"
        )
    if kind.metric_kind != task.kind:
        raise ExchangeError(f"the adapter is of a {kind.metric_kind} task, and {task.name!r} is a {task.kind} task")
    if head is None and kind.zero_head(backbone):
        raise ExchangeError(
            "the folder has lost its head (head.safetensors, head.json); give the rows (--rows TASK.yaml)"
        )
    return kind


def _own_head(kind: Kind[Any], backbone: Backbone, head: Head | None) -> Head | None:
    """The head with its outputs in the order of the kind; one of zeros where there is none yet.

    Raises ExchangeError where it is for other outputs.
    """
    blank = kind.zero_head(backbone)
    if blank is None or head is None:
        return blank
    if set(head.labels) != set(blank.labels):
        raise ExchangeError(
            f"the head is for {list(head.labels)}, and the task has {list(blank.labels)}; "
            "import it as the task that it was trained for"
        )
    own = head.reorder_labels(blank.labels)
    return kind.to_standard_units(own) if isinstance(kind, Regression) else own


def _learned_so(data: TaskData, method: str, settings: MethodSettings) -> TaskData:
    """The task as if it were learned by the method of the adapter, which may leave its texts fewer tokens."""
    own = Method.model_validate({"name": method, **settings.model_dump(mode="json")})
    return replace(data, spec=data.spec.model_copy(update={"method": own}))


def _parents(registry: Registry, origin: ExportOrigin | None) -> list[Parent]:
    """The delta that was exported, where this registry has it."""
    try:
        same = origin is not None and registry.delta(origin.delta).digest == origin.digest
    except NotFound:
        same = False
    return [Parent(delta=origin.delta, kind="import", weight=1.0)] if origin and same else []


def _register(
    backbone: Backbone,
    registry: Registry,
    delta: Delta,
    *,
    known: TaskRecord,
    rows: PreparedTask | None,
    parents: Sequence[Parent],
) -> str:
    budget = rows.budget if rows else Budget.model_validate(known.spec.get("budget") or {})
    record = delta_record(registry.blobs, backbone, delta, task=known, budget=budget, warm_start=IMPORTED)
    scores = list(_scores(delta, rows)) if rows else []
    own = _signature(registry, rows, delta) if rows else None
    held = contest_champion(backbone, registry, rows, delta) if rows else None
    with registry.unit_of_work() as unit:
        unit.add_backbone(backbone_record(backbone))
        if rows:
            unit.add_task(known)
            record = replace(record, data=data_record(rows.data))
        return unit.add_delta(record, parents=parents, scores=scores, signature=own, contest=held)


def _signature(registry: Registry, task: PreparedTask, delta: Delta) -> SignatureRecord:
    rows, held_out, _ = task.frozen_views
    routing = task.routing_statistics(delta, train=rows, held_out=held_out)
    return store_signature(registry.blobs, task.backbone, task_signature(task.kind, rows), routing)


def _scores(delta: Delta, task: PreparedTask) -> Iterator[Score]:
    metric, kind = task.data.spec.metric, task.kind
    for split, rows in (("validation", task.validation), ("test", task.test)):
        outputs = kind.outputs(ForwardContext(task.backbone, delta, rows), delta.head)
        answers = answer_labels(kind.answers(task.backbone, outputs, rows))
        found = score_with_interval(metric, rows.truth, answers, kind=kind.metric_kind)
        yield Score(split=split, metric=metric, **asdict(found))
