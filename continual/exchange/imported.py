"""Import: a folder of PEFT's as a new version of a task's delta."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from continual.backbone import Backbone, published_name
from continual.deltas import Delta, Head, MethodSettings
from continual.deltas.delta import check_fits
from continual.errors import ExchangeError, NotFound
from continual.evaluate import measure, predict_classes
from continual.exchange.folder import Origin, read_adapter, read_head
from continual.exchange.peft import from_peft
from continual.learn import Task, ready
from continual.record import backbone_record, delta_record, task_record
from continual.warmstart import Neighbour, judge
from registry import IMPORTED, Parent, Registry, Score, SignatureRecord, TaskRecord
from tasks import Budget, Method, TaskData


def import_delta(
    backbone: Backbone, registry: Registry, folder: Path, *, task: str, data: TaskData | None = None
) -> str:
    """Register what PEFT saved in a folder as the next version of a task's delta; its name.

    The task must be registered, with the labels of the folder's head; nothing is measured then, so that a champion
    that was measured stays. With the task's rows, `data`, the delta is scored on them, and a folder without a head gets
    one in closed form.

    Raises NotFound for the task, ExchangeError for a folder that does not fit the backbone or the task.
    """
    adapter, origin = read_adapter(folder)
    _require_base(backbone, adapter.config.get("base_model_name_or_path"), origin)
    method, settings, values = from_peft(backbone, adapter)
    known = registry.task(task) if data is None else task_record(data)
    rows = None if data is None else ready(backbone, _learned_so(data, method, settings))
    head = _same_labels(read_head(folder, hidden_size=backbone.hidden_size), known)
    if head is None and rows is None:
        raise ExchangeError(
            f"{folder} has no head (head.safetensors, head.json), and the registry keeps no rows to make one of; "
            "give the task's rows (--rows TASK.yaml)"
        )
    empty = torch.zeros(len(known.labels), backbone.hidden_size)
    delta = Delta(
        method, settings, backbone.fingerprint, values, head or Head(empty, empty[:, 0], known.labels, backbone.pooling)
    )
    check_fits(backbone, delta)
    if head is None and rows is not None:
        delta = _with_closed_form(backbone, delta, rows)
    return _register(backbone, registry, delta, known, rows, _parents(registry, origin))


def _require_base(backbone: Backbone, base: str | None, origin: Origin | None) -> None:
    """Raises ExchangeError for an adapter of another model: by its fingerprint, or else the last part of its name."""
    if origin is not None:
        if origin.backbone != backbone.fingerprint:
            raise ExchangeError(
                f"the adapter was exported from backbone {origin.backbone[:12]} ({base}), and {backbone.name!r} is "
                f"{backbone.fingerprint[:12]}; name the backbone that it was trained on (--backbone)"
            )
        return
    names = {_last(name) for name in (backbone.name, published_name(backbone.name), backbone.model.name_or_path)}
    if base and _last(base) not in names:
        raise ExchangeError(
            f"the adapter was trained on {base!r}, and the backbone is {backbone.name!r}; name the one that it was "
            "trained on (--backbone) or, if these are the same weights, make base_model_name_or_path null in "
            "adapter_config.json"
        )


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()


def _learned_so(data: TaskData, method: str, settings: MethodSettings) -> TaskData:
    """The task as if it were learned by the method of the adapter, which may leave its texts fewer tokens."""
    own = Method.model_validate({"name": method, **settings.model_dump(mode="json")})
    return replace(data, spec=data.spec.model_copy(update={"method": own}))


def _same_labels(head: Head | None, task: TaskRecord) -> Head | None:
    """The head with its labels in the task's order."""
    if head is None:
        return None
    if set(head.labels) != set(task.labels):
        raise ExchangeError(
            f"the head is for labels {list(head.labels)}, and task {task.name!r} has {list(task.labels)}; "
            "import it as the task that it was trained for"
        )
    order = [head.labels.index(label) for label in task.labels]
    return replace(head, weight=head.weight[order], bias=head.bias[order], labels=task.labels)


def _with_closed_form(backbone: Backbone, delta: Delta, task: Task) -> Delta:
    found = judge(backbone, Neighbour("", delta), rows=task.train, held_out=task.validation, classes=task.classes).head
    return replace(delta, head=replace(delta.head, weight=found.weight, bias=found.bias))


def _parents(registry: Registry, origin: Origin | None) -> list[Parent]:
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
    known: TaskRecord,
    task: Task | None,
    parents: Sequence[Parent],
) -> str:
    budget = task.budget if task else Budget.model_validate(known.spec.get("budget") or {})
    record = delta_record(registry.blobs, backbone, delta, task=known.name, budget=budget, warm_start=IMPORTED)
    signature, scores = None, []
    if task:
        own = judge(backbone, None, rows=task.train, held_out=task.validation, classes=task.classes).own
        signature = SignatureRecord(digest=registry.blobs.put(own.to_bytes()), rows=own.rows, pooling=backbone.pooling)
        scores = list(_scores(backbone, delta, task))
    with registry.unit() as unit:
        unit.add_backbone(backbone_record(backbone))
        if task:
            unit.add_task(known)
        return unit.add_delta(record, parents=parents, scores=scores, signature=signature)


def _scores(backbone: Backbone, delta: Delta, task: Task) -> Iterator[Score]:
    metric = task.data.spec.metric
    for split, rows in (("validation", task.validation), ("test", task.test)):
        found = measure(metric, rows.classes.tolist(), predict_classes(backbone, delta, rows))
        yield Score(split=split, metric=metric, **asdict(found))
