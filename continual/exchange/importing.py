"""Import a PEFT adapter as a new version of a task's delta."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, Head, MethodSettings
from continual.deltas.peft_format import PeftAdapter
from continual.deltas.values import check_compatible
from continual.errors import ExchangeError
from continual.exchange.base_identity import require_base
from continual.exchange.files import ExportOrigin, read_adapter, read_head
from continual.exchange.peft import from_peft
from continual.exchange.saved_heads import saved_head
from continual.exchange.unreached import HEAD, split_adapter
from continual.inference.task_statistics import store_signature, task_signature
from continual.kinds import Answer, ForwardContext, Kind, backbone_for, kind_from_metadata, kind_metadata, kind_of
from continual.kinds.answer_counts import count_answers
from continual.kinds.classification import Classification
from continual.kinds.scoring import score_answers_with_interval
from continual.learning.champion_contest import contest_champion
from continual.learning.prepared import PreparedTask, prepare_task
from continual.learning.record import backbone_record, data_record, delta_record, task_record
from registry import IMPORTED, Parent, Registry, Score, SignatureRecord, TaskRecord
from registry.errors import NotFound
from tasks import Budget, Method, TaskData

log = logging.getLogger(__name__)


def import_delta(
    backbone: Backbone, registry: Registry, folder: Path, *, task: str, data: TaskData | None = None
) -> str:
    """Register the adapter in a folder as the next version of a task's delta, and return the delta's name.

    What could not be proved, and tensors that are left out, are logged as warnings.

    Args:
        backbone: The model on which the adapter was trained.
        registry: Where the delta is registered.
        folder: `adapter_config.json`, `adapter_model.safetensors` and, for a delta with a head, `head.safetensors` and
            `head.json`, or a classifier among the tensors that is linear in the states (`saved_head`).
        task: Name of the task. Without `data` it must be registered, with the labels of the folder's head.
        data: The task's rows. With them the delta is scored, and a folder without a head gets the closed-form head.
            Without them nothing is measured, so a measured champion remains.

    Raises:
        NotFound: The task is not registered.
        ExchangeError: The folder does not fit the backbone or the task.
        StoreMismatch: The registry's blob store belongs to another registry.
    """
    registry.claim_store()
    adapter, origin = read_adapter(folder)
    notes = [require_base(backbone, adapter.config, origin)]
    record = registry.task(task) if data is None else task_record(data)
    kind = None if data is None else kind_of(backbone, data)
    saved = _read_head(backbone, folder, adapter, _classes(record, kind))
    kind = kind or _registered_kind(backbone, record, origin, saved)
    task_backbone = backbone_for(backbone, kind)
    method, settings, values = from_peft(task_backbone, adapter)
    prepared = None if data is None else prepare_task(backbone, _with_method(data, method, settings))
    if prepared:
        if origin and origin.kind:  # an export of ours was learned with what its kind takes from the rows
            prepared = prepared.with_fitted_kind()
        task_backbone, kind = prepared.backbone, prepared.kind
    task_head = _task_head(kind, task_backbone, saved.head)
    delta = Delta(method, settings, backbone.fingerprint, values, task_head, kind_metadata(kind))
    check_compatible(task_backbone, delta)
    if prepared and delta.head and not saved.head:
        train, validation = (
            ForwardContext(task_backbone, delta, rows) for rows in (prepared.train, prepared.validation)
        )
        delta = replace(delta, head=kind.closed_form_start(train, validation).head)
        notes.append(f"{saved.obstacle}; the head was fitted on the rows instead" if saved.obstacle else None)
    notes += _left_out(task_backbone, adapter, saved)
    name = _register(
        task_backbone,
        registry,
        delta,
        record=replace(record, labels=kind.registered_labels),
        prepared=prepared,
        parents=_parents(registry, origin),
    )
    for note in filter(None, notes):
        log.warning("%s: %s", name, note)
    return name


@dataclass(frozen=True)
class _SavedHead:
    """The head in a folder.

    Attributes:
        head: The head, if there is one.
        is_classifier: Whether it was a classifier among the adapter's tensors.
        obstacle: Why a classifier among them cannot become a head; empty where it can, or where there is none.
    """

    head: Head | None
    is_classifier: bool = False
    obstacle: str = ""


def _classes(record: TaskRecord, kind: Kind[Any] | None) -> tuple[str, ...] | None:
    """Return the labels of a classification by a head, by its kind or else its record; None for other tasks."""
    if kind is not None:
        return kind.labels if isinstance(kind, Classification) else None
    return record.labels if record.kind == Classification.metric_kind else None


def _read_head(backbone: Backbone, folder: Path, adapter: PeftAdapter, labels: Sequence[str] | None) -> _SavedHead:
    """Return the head of `head.json`, else the saved classifier for the labels of a classification."""
    if head := read_head(folder, hidden_size=backbone.hidden_size):
        return _SavedHead(head)
    if labels is None:
        return _SavedHead(None)
    head, obstacle = saved_head(backbone, split_adapter(backbone, adapter).heads, labels, folder=folder)
    return _SavedHead(head, is_classifier=head is not None, obstacle=obstacle)


def _left_out(backbone: Backbone, adapter: PeftAdapter, saved: _SavedHead) -> Iterator[str]:
    """Yield a note per reason for which tensors were left out; a classifier that became the head was not."""
    for reason, modules in split_adapter(backbone, adapter).unreached.items():
        if not (reason == HEAD and saved.is_classifier):
            shown = ", ".join(modules[:3]) + (f" and {len(modules) - 3} more" if len(modules) > 3 else "")
            yield f"the tensors of {shown} were left out: {reason}"


def _registered_kind(backbone: Backbone, task: TaskRecord, origin: ExportOrigin | None, saved: _SavedHead) -> Kind[Any]:
    """Return the kind of a registered task: from the export's origin, else a classification's head.

    Raises:
        ExchangeError: There is neither, or the kind is not the registered task's.
    """
    head = saved.head
    if origin and origin.kind:
        kind = kind_from_metadata(origin.kind)
    elif head and task.kind == "classification":
        labels = tuple(label for label in task.labels if label in head.labels)  # an earlier version may have had fewer
        kind = Classification(labels if len(labels) == len(head.labels) else task.labels)
    else:
        raise ExchangeError(
            f"the folder has no head (head.safetensors, head.json) for the answers of a {task.kind} delta"
            + (f", {saved.obstacle}" if saved.obstacle else "")
            + ", and the registry keeps no rows to make one of; give the task's rows (--rows TASK.yaml)"
        )
    if kind.metric_kind != task.kind:
        raise ExchangeError(f"the adapter is of a {kind.metric_kind} task, and {task.name!r} is a {task.kind} task")
    if head is None and kind.zero_head(backbone):
        raise ExchangeError(
            "the folder has lost its head (head.safetensors, head.json); give the rows (--rows TASK.yaml)"
        )
    return kind


def _task_head(kind: Kind[Any], backbone: Backbone, head: Head | None) -> Head | None:
    """The head with its outputs in the order of the kind; one of zeros where there is none yet.

    Raises ExchangeError where it is for other outputs.
    """
    zero_head = kind.zero_head(backbone)
    if zero_head is None or head is None:
        return zero_head
    if set(head.labels) != set(zero_head.labels):
        raise ExchangeError(
            f"the head is for {list(head.labels)}, and the task has {list(zero_head.labels)}; "
            "import it as the task that it was trained for"
        )
    ordered = head.reorder_labels(zero_head.labels)
    return kind.to_standard_units(ordered)


def _with_method(data: TaskData, method: str, settings: MethodSettings) -> TaskData:
    """Return the task with the adapter's method, which may leave its texts fewer tokens."""
    spec_method = Method.model_validate({"name": method, **settings.model_dump(mode="json")})
    return replace(data, spec=data.spec.model_copy(update={"method": spec_method}))


def _parents(registry: Registry, origin: ExportOrigin | None) -> list[Parent]:
    """Return the delta that was exported as the parent, if this registry has it."""
    try:
        is_registered = origin is not None and registry.delta(origin.delta).digest == origin.digest
    except NotFound:
        is_registered = False
    return [Parent(delta=origin.delta, kind="import", weight=1.0)] if origin and is_registered else []


def _register(
    backbone: Backbone,
    registry: Registry,
    delta: Delta,
    *,
    record: TaskRecord,
    prepared: PreparedTask | None,
    parents: Sequence[Parent],
) -> str:
    """Write the delta, with scores and signature of the task's rows where there are some; return its name."""
    budget = prepared.budget if prepared else Budget.model_validate(record.spec.get("budget") or {})
    version = delta_record(registry.blobs, backbone, delta, task=record, budget=budget, warm_start=IMPORTED)
    answers = _answers(delta, prepared) if prepared else {}
    scores = list(_scores(prepared, answers)) if prepared else []
    signature = _signature(registry, prepared, delta) if prepared else None
    contest = contest_champion(backbone, registry, prepared, delta) if prepared else None
    with registry.unit_of_work() as unit:
        unit.add_backbone(backbone_record(backbone))
        if prepared:
            unit.add_task(record)
            counts = count_answers(prepared.kind, prepared.test, answers["test"])
            version = replace(version, data=data_record(prepared.data, answers=counts))
        return unit.add_delta(version, parents=parents, scores=scores, signature=signature, contest=contest)


def _signature(registry: Registry, task: PreparedTask, delta: Delta) -> SignatureRecord:
    rows, held_out, _ = task.frozen_views
    routing = task.routing_statistics(delta, train=rows, held_out=held_out)
    return store_signature(registry.blobs, task.backbone, task_signature(task.kind, rows), routing)


def _answers(delta: Delta, task: PreparedTask) -> dict[str, list[Answer]]:
    """Answer the held-out rows of a task, by split."""
    splits = {"validation": task.validation, "test": task.test}
    contexts = {split: ForwardContext(task.backbone, delta, rows) for split, rows in splits.items()}
    return {
        split: task.kind.answers(task.backbone, task.kind.outputs(context, delta.head), context.rows)
        for split, context in contexts.items()
    }


def _scores(task: PreparedTask, answers: Mapping[str, Sequence[Answer]]) -> Iterator[Score]:
    metric = task.data.spec.metric
    for split, rows in (("validation", task.validation), ("test", task.test)):
        score = score_answers_with_interval(task.kind, metric, rows, answers[split])
        yield Score(split=split, metric=metric, **asdict(score))
