"""How what was learned is written down in the registry: never a row, always enough to prove what was learned."""

import importlib.metadata
from collections.abc import Callable
from dataclasses import replace

from continual.backbones.backbone import Backbone
from continual.deltas import Delta
from continual.inference.task_statistics import store_signature
from continual.kinds import Outputs
from continual.learning.champion_contest import contest_champion
from continual.learning.fixed_inputs import probe_outputs
from continual.learning.learn import LearnedTask
from continual.serialization import deserialize, serialize
from registry import (
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

LINEAGE_KINDS: dict[str, LineageKind] = {
    "retrained": "retrained",
    "nearest": "warm_start",
    "merge": "merged",
}  # by kind of start
PACKAGE_VERSIONS = {name: importlib.metadata.version(name) for name in ("continual", "torch", "transformers")}


def register_learned(
    registry: Registry,
    backbone: Backbone,
    learned: LearnedTask,
    *,
    also: Callable[[UnitOfWork, str], None] = lambda unit, delta: None,
    moved: str | None = None,
) -> str:
    """Write a learned task down in one unit of work, and whatever `also` writes; the name of the new delta.

    Where another version serves, both answer held-out rows first, and the registry decides by what they said.
    moved: the delta of another backbone that was learned from the same rows, whose recipe it is; it serves only where
    it is no worse than that one either.

    Raises TaskChanged where the registry knows a task of this name with other labels.
    """
    start, own, data = learned.start, learned.signature, learned.task.data
    delta = _learned_record(registry.blobs, backbone, learned)
    signature = store_signature(registry.blobs, backbone, own, learned.routing)
    gain = start.start.mean - learned.scratch.start.mean
    parents = [
        Parent(delta=neighbour.name, kind=LINEAGE_KINDS[start.kind], weight=weight, score=start.start.mean, gain=gain)
        for neighbour, weight in start.sources
    ]
    parents += [
        Parent(delta=n.name, kind="subspace", weight=1 / len(start.subspace_deltas)) for n in start.subspace_deltas
    ]
    if moved:
        parents.append(Parent(delta=moved, kind="retrained", weight=0.0))  # its recipe, and none of its values
    held = contest_champion(backbone, registry, learned.task, learned.trained.delta)

    def work(unit: UnitOfWork) -> str:
        unit.add_backbone(backbone_record(backbone))
        unit.add_task(task_record(data))
        name = unit.add_delta(
            delta, parents=parents, scores=learned.scores, signature=signature, contest=held, rival=moved
        )
        also(unit, name)
        return name

    return registry.write_with_retry(work)


def backbone_record(backbone: Backbone) -> BackboneRecord:
    """What the registry keeps of a backbone: how to know it again, not its weights."""
    return BackboneRecord(
        fingerprint=backbone.fingerprint,
        name=backbone.name,
        family=backbone.family.name,
        hidden_size=backbone.hidden_size,
        parameters=backbone.parameter_count,
        pooling=backbone.pooling,
    )


def task_record(data: TaskData) -> TaskRecord:
    """What the registry keeps of a task: never its rows, only their digests and number."""
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


def data_record(data: TaskData) -> DataRecord:
    """Where a version's rows came from, so that its validation rows can be read again."""
    known = task_record(data)
    folder = str(data.folder.absolute())
    return DataRecord(spec=known.spec, folder=folder, seed=data.seed, fingerprints=known.fingerprints, rows=known.rows)


def _learned_record(blobs: BlobStore, backbone: Backbone, learned: LearnedTask) -> DeltaRecord:
    plain = delta_record(
        blobs,
        backbone,
        learned.trained.delta,
        task=task_record(learned.task.data),
        budget=learned.task.budget,
        warm_start=learned.start.kind,
    )
    return replace(
        plain,
        seed=learned.task.data.seed,
        seconds=learned.seconds,
        examples_per_second=learned.trained.examples_per_second,
        predictions=blobs.put(serialize_outputs(learned.outputs)),
        tried=tuple(trial.told() for trial in learned.search_trials),
        data=data_record(learned.task.data),
    )


def delta_record(
    blobs: BlobStore, backbone: Backbone, delta: Delta, *, task: TaskRecord, budget: Budget, warm_start: str
) -> DeltaRecord:
    """What the registry keeps of a delta, which is stored as a blob; without what its training took."""
    stored = delta.to_bytes()
    return DeltaRecord(
        task=task.name,
        backbone=backbone.fingerprint,
        method=delta.method,
        settings=delta.settings.model_dump(mode="json"),
        budget=budget.model_dump(mode="json"),
        digest=blobs.put(stored),
        bytes=len(stored),
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
    """What a delta says of the test rows as it is stored; the same, to the bit, gives the same bytes."""
    return serialize(outputs)


def deserialize_outputs(data: bytes) -> Outputs:
    """What `outputs_to_bytes` wrote. Raises: BlobError, where it is none, or of a newer format."""
    return deserialize(data, what="answer")[0]
