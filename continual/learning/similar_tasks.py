"""Rank the learned tasks by similarity to a task: the rows of `continual similar`."""

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
    """List the other tasks, the most similar first, with the measures that need signatures alone.

    Raises:
        NotFound: The task has no signature.
    """
    rows: list[Row] = []
    learned: set[str] = set()
    for backbone in registry.backbones():
        signatures = stored_signatures(registry, backbone)
        learned |= signatures.keys()
        if task in signatures:
            signature = signatures.pop(task)
            rows += [
                {
                    "task": name,
                    "similarity": similarity,
                    "backbone": backbone.name,
                    **{
                        measure: compare(signature, signatures[name]) for measure, compare in SIGNATURE_MEASURES.items()
                    },
                }
                for name, similarity in rank_by_similarity(signature, signatures)
            ]
    if task not in learned:
        raise not_found("task with a signature", task, known_names=learned)
    return rows


def compare_through_deltas(registry: Registry, backbone: Backbone, task: str) -> list[Row]:
    """List the tasks of one backbone with all measures, including those of other deltas on its rows.

    A measure is None for a delta that cannot read the task's rows, or that is damaged.

    Raises:
        NotFound: The task has no signature.
        InputError: The task's rows cannot be read again.
    """
    rows = [row for row in similar_tasks(registry, task) if row["backbone"] == backbone.name]
    prepared, champions = _reload_task(registry, backbone, task), _champions(registry, backbone.fingerprint)
    changes = {name: _learned_change(prepared.backbone, *champion) for name, champion in champions.items()}
    for row in rows:
        name = row["task"]
        row["deltas"] = delta_cosine(changes[task], changes[name]) if {task, name} <= changes.keys() else None
        readable = name in champions and is_readable(prepared.backbone, champions[name][0])
        row |= (
            transferability_measures(prepared, champions[name][0])
            if readable
            else dict.fromkeys((*TRANSFERABILITY_MEASURES, "labels"))
        )
    return rows


def transferability_measures(task: PreparedTask, delta: Delta) -> dict[str, float | None]:
    """Compute measures of another task's delta for a task: by features, head and names of labels."""
    rows, held_out = (ForwardContext(task.backbone, delta, part) for part in (task.train, task.validation))
    quality = task.kind.closed_form_start(rows, held_out).mean_quality
    classes, count = task.kind.signature_classes(task.train)
    head = delta.head if not delta.kind else None  # a classification's head
    answers = torch.softmax(head(rows.vectors), dim=1) if head else None
    view = TransferView(rows.vectors, classes, count, answers, quality)
    names = [encode_labels(task.backbone, labels) for labels in (task.data.labels, head.labels if head else ())]
    return {
        **{name: measure(view) for name, measure in TRANSFERABILITY_MEASURES.items()},
        "labels": label_name_similarity(*names),
    }


def _champions(registry: Registry, fingerprint: str) -> dict[str, tuple[Delta, int]]:
    """The champions and their seeds, by task; those that cannot be read are logged and left out."""
    champions = {}
    for champion in registry.champions(fingerprint):
        try:
            delta = load_delta(registry.blobs.get(champion.digest))
            champions[champion.task] = delta, registry.delta(champion.delta).seed
        except (BlobError, DeltaError) as error:
            log.warning("delta %s cannot be compared: %s", champion.delta, error)
    return champions


def _learned_change(backbone: Backbone, delta: Delta, seed: int) -> dict[str, Tensor]:
    """The values of a delta less those that it was initialised with."""
    fresh = init_values(backbone, delta.settings, seed=seed)
    return {
        key: value - fresh[key]
        for key, value in delta.values.items()
        if key in fresh and _same_shape(value, fresh[key])
    }


def _same_shape(value: Tensor, initial: Tensor) -> bool:
    return value.shape == initial.shape and value.is_floating_point()


def _reload_task(registry: Registry, backbone: Backbone, task: str) -> PreparedTask:
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
