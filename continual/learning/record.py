"""Register a learned task: its digests, scores and lineage, never a row of its data."""

import importlib.metadata
from collections.abc import Callable
from dataclasses import replace

from continual.backbones.backbone import Backbone
from continual.deltas import Delta
from continual.inference.task_statistics import store_signature
from continual.kinds import Outputs
from continual.kinds.answer_counts import count_answers
from continual.learning.champion_contest import contest_champion
from continual.learning.learn import LearnedTask
from continual.learning.probes import probe_outputs
from continual.serialization import deserialize, serialize
from continual.settings import DISTRIBUTION
from registry import (
    AnswerCounts,
    BackboneRecord,
    BlobStore,
    DataRecord,
    DeltaRecord,
    LineageKind,
    Parent,
    Registry,
    TaskRecord,
    UnitOfWork,
)
from tasks import Budget, TaskData

# By kind of warm start.
LINEAGE_KINDS: dict[str, LineageKind] = {"retrained": "retrained", "nearest": "warm_start", "merge": "merged"}
DISTRIBUTIONS = {"continual": DISTRIBUTION, "torch": "torch", "transformers": "transformers"}
PACKAGE_VERSIONS = {name: importlib.metadata.version(package) for name, package in DISTRIBUTIONS.items()}


def register_learned(
    registry: Registry,
    backbone: Backbone,
    learned: LearnedTask,
    *,
    in_same_unit: Callable[[UnitOfWork, str], None] = lambda unit, delta: None,
    migrated_from: str | None = None,
) -> str:
    """Register a learned task in one unit of work; return the name of the new delta.

    Where another version serves, both answer validation rows first, and the registry decides by their scores.

    Args:
        registry: The registry.
        backbone: The backbone on which the task was learned.
        learned: The learned task.
        in_same_unit: Writes more in the same unit of work; called with the unit and the delta's name.
        migrated_from: The delta of another backbone that was learned from the same rows by the same recipe; the new
            delta serves only where it is no worse than that one either.

    Raises:
        TaskChanged: The registry holds a task of this name with other labels.
    """
    start, data = learned.start, learned.task.data
    delta = _learned_record(registry.blobs, backbone, learned)
    signature = store_signature(registry.blobs, backbone, learned.signature, learned.routing)
    gain = start.start.mean_quality - learned.scratch.start.mean_quality
    parents = [
        Parent(
            delta=neighbour.name,
            kind=LINEAGE_KINDS[start.kind],
            weight=weight,
            score=start.start.mean_quality,
            gain=gain,
        )
        for neighbour, weight in start.sources
    ]
    parents += [
        Parent(delta=neighbour.name, kind="subspace", weight=1 / len(start.subspace_deltas))
        for neighbour in start.subspace_deltas
    ]
    if migrated_from:
        parents.append(Parent(delta=migrated_from, kind="retrained", weight=0.0))  # its recipe, none of its values
    contest = contest_champion(backbone, registry, learned.task, learned.trained.delta)

    def work(unit: UnitOfWork) -> str:
        unit.add_backbone(backbone_record(backbone))
        unit.add_task(task_record(data))
        name = unit.add_delta(
            delta, parents=parents, scores=learned.scores, signature=signature, contest=contest, rival=migrated_from
        )
        in_same_unit(unit, name)
        return name

    return registry.write_with_retry(work)


def backbone_record(backbone: Backbone) -> BackboneRecord:
    """Return the registry's record of a backbone: its fingerprint and shape, not its weights."""
    return BackboneRecord(
        fingerprint=backbone.fingerprint,
        name=backbone.name,
        family=backbone.family.name,
        hidden_size=backbone.hidden_size,
        parameters=backbone.parameter_count,
        pooling=backbone.pooling,
    )


def task_record(data: TaskData) -> TaskRecord:
    """Return the registry's record of a task: the digests and numbers of its rows, never the rows."""
    spec, splits = data.spec, {"train": data.train, "validation": data.validation, "test": data.test}
    return TaskRecord(
        name=spec.name,
        kind=spec.kind,
        metric=spec.metric,
        labels=data.labels,
        spec=spec.model_dump(mode="json"),
        fingerprints={split: rows.fingerprint for split, rows in splits.items()},
        rows={split: len(rows) for split, rows in splits.items()},
    )


def data_record(data: TaskData, *, answers: AnswerCounts | None = None) -> DataRecord:
    """Return where a version's rows came from, so that they can be read again, and how it answered the test rows."""
    task = task_record(data)
    folder = str(data.folder.absolute())
    return DataRecord(
        spec=task.spec,
        folder=folder,
        seed=data.seed,
        fingerprints=task.fingerprints,
        rows=task.rows,
        warnings=data.warnings,
        answers=answers,
    )


def _learned_record(blobs: BlobStore, backbone: Backbone, learned: LearnedTask) -> DeltaRecord:
    task = learned.task
    record = delta_record(
        blobs,
        backbone,
        learned.trained.delta,
        task=task_record(task.data),
        budget=task.budget,
        warm_start=learned.start.kind,
    )
    return replace(
        record,
        seed=task.data.seed,
        seconds=learned.seconds,
        examples_per_second=learned.trained.examples_per_second,
        predictions=blobs.put(serialize_outputs(learned.outputs)),
        tried=tuple(trial.to_json() for trial in learned.search_trials),
        data=data_record(task.data, answers=count_answers(task.kind, task.test, learned.opinion.answers)),
    )


def delta_record(
    blobs: BlobStore, backbone: Backbone, delta: Delta, *, task: TaskRecord, budget: Budget, warm_start: str
) -> DeltaRecord:
    """Store a delta as a blob and return the registry's record of it, without the cost of its training."""
    data = delta.to_bytes()
    return DeltaRecord(
        task=task.name,
        backbone=backbone.fingerprint,
        method=delta.method,
        settings=delta.settings.model_dump(mode="json"),
        budget=budget.model_dump(mode="json"),
        digest=blobs.put(data),
        bytes=len(data),
        parameters=delta.parameter_count,
        share=delta.parameter_count / backbone.parameter_count,
        seed=0,
        labels=task.labels,
        versions=PACKAGE_VERSIONS,
        warm_start=warm_start,
        seconds=0.0,
        examples_per_second=None,
        replay=blobs.put(probe_outputs(backbone, delta)),
    )


def serialize_outputs(outputs: Outputs) -> bytes:
    """Serialize a delta's outputs for the test rows; equal outputs, to the bit, give equal bytes."""
    return serialize(outputs)


def deserialize_outputs(data: bytes) -> Outputs:
    """Read what `serialize_outputs` wrote.

    Raises:
        BlobError: The bytes are something else, or of a newer format.
    """
    return deserialize(data, what="answer")[0]
