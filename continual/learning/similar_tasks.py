"""Which tasks are like a task, by every measure: what `continual similar` lists."""

import logging
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, init_values, load_delta
from continual.errors import DeltaError
from continual.features.stored_signatures import stored_signatures
from continual.kinds import ForwardContext
from continual.learning.prepared import PreparedTask, prepare_task
from continual.transfer.neighbours import encode_labels, is_readable
from continual.transfer.similarity import SIGNATURE_MEASURES, delta_cosine, label_name_similarity, rank_by_similarity
from continual.transfer.transferability import TRANSFERABILITY_MEASURES, TransferView
from registry import Registry, not_found
from registry.errors import BlobError
from tasks import TaskSpec, load_task
from tasks.errors import InputError

log = logging.getLogger(__name__)

Row = dict[str, Any]


def similar_tasks(registry: Registry, task: str) -> list[Row]:
    """The other tasks, the most alike first: the similarity that ranks them, and every measure that needs no row.

    Raises NotFound for a task without a signature.
    """
    rows: list[Row] = []
    learned: set[str] = set()
    for backbone in registry.backbones():
        signatures = stored_signatures(registry, backbone)
        learned |= signatures.keys()
        if task in signatures:
            own = signatures.pop(task)
            rows += [
                {
                    "task": name,
                    "similarity": similarity,
                    "backbone": backbone.name,
                    **{measure: compare(own, signatures[name]) for measure, compare in SIGNATURE_MEASURES.items()},
                }
                for name, similarity in rank_by_similarity(own, signatures)
            ]
    if task not in learned:
        raise not_found("task with a signature", task, known=learned)
    return rows


def compare_through_deltas(registry: Registry, backbone: Backbone, task: str) -> list[Row]:
    """The same on one backbone, and the measures that read the task's rows through each of the others' deltas.

    None for those of a delta that the task's rows cannot be read through, or that is damaged.
    Raises NotFound as `similar_tasks` does, InputError for a task whose rows cannot be read again.
    """
    rows = [row for row in similar_tasks(registry, task) if row["backbone"] == backbone.name]
    own, champions = _read_again(registry, backbone, task), _champions(registry, backbone.fingerprint)
    moved = {name: _moved(own.backbone, *champion) for name, champion in champions.items()}
    for row in rows:
        other = row["task"]
        row["deltas"] = delta_cosine(moved[task], moved[other]) if {task, other} <= moved.keys() else None
        readable = other in champions and is_readable(own.backbone, champions[other][0])
        row |= (
            transferability_measures(own, champions[other][0])
            if readable
            else dict.fromkeys((*TRANSFERABILITY_MEASURES, "labels"))
        )
    return rows


def transferability_measures(task: PreparedTask, delta: Delta) -> dict[str, float | None]:
    """The measures of a delta for a task whose rows are ready: by its features, its head and its labels' names."""
    rows, held_out = (ForwardContext(task.backbone, delta, part) for part in (task.train, task.validation))
    quality = task.kind.closed_form_start(rows, held_out).mean
    classes, count = task.kind.classes(task.train)
    head = delta.head if not delta.kind else None  # that of a classification
    answers = torch.softmax(head(rows.vectors), dim=1) if head else None
    look = TransferView(rows.vectors, classes, count, answers, quality)
    names = [encode_labels(task.backbone, found) for found in (task.data.labels, head.labels if head else ())]
    return {
        **{name: measure(look) for name, measure in TRANSFERABILITY_MEASURES.items()},
        "labels": label_name_similarity(*names),
    }


def _champions(registry: Registry, fingerprint: str) -> dict[str, tuple[Delta, int]]:
    """The deltas that serve, and their seeds, by task; without those that cannot be read, which are warned of."""
    found = {}
    for champion in registry.champions(fingerprint):
        try:
            delta = load_delta(registry.blobs.get(champion.digest))
            found[champion.task] = delta, registry.delta(champion.delta).seed
        except (BlobError, DeltaError) as error:
            log.warning("delta %s cannot be compared: %s", champion.delta, error)
    return found


def _moved(backbone: Backbone, delta: Delta, seed: int) -> dict[str, Tensor]:
    """How far each value of a delta is from a fresh one."""
    fresh = init_values(backbone, delta.settings, seed=seed)
    return {
        key: value - fresh[key] for key, value in delta.values.items() if key in fresh and _alike(value, fresh[key])
    }


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.is_floating_point()


def _read_again(registry: Registry, backbone: Backbone, task: str) -> PreparedTask:
    last = registry.last_version(task, backbone.fingerprint)
    if last is None or last.data is None or last.data.folder is None:
        raise InputError(
            f"where the rows of task {task!r} came from is not known; leave out --rows, or learn the task again"
        )
    try:
        spec = TaskSpec.model_validate(last.data.spec)
    except ValidationError as error:
        raise InputError(
            f"task {task!r} was learned by another release, and its rows cannot be read: {error}"
        ) from error
    return prepare_task(backbone, load_task(spec, folder=Path(last.data.folder), seed=last.data.seed))
