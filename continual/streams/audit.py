"""Audit for forgetting: recompute every stored test prediction and compare it with the stored bits."""

from dataclasses import dataclass

import torch

from continual.backbones.backbone import Backbone
from continual.deltas import load_delta
from continual.kinds import ForwardContext, Outputs
from continual.kinds.scoring import score_answers
from continual.learning.prepared import PreparedTask, prepare_task
from continual.learning.record import deserialize_outputs
from continual.streams.preflight import load_and_check
from registry import Registry
from tasks import Stream


@dataclass(frozen=True)
class AuditResult:
    """Comparison of a delta's recomputed test predictions with those stored when it was learned.

    Attributes:
        task: The task.
        delta: The name of its delta.
        rows: The number of test rows.
        changed: The number of rows whose outputs differ in any bit.
        before: The score of the stored outputs.
        now: The score of the recomputed outputs.
    """

    task: str
    delta: str
    rows: int
    changed: int
    before: float
    now: float

    @property
    def identical(self) -> bool:
        """True where every output is bit-identical."""
        return self.changed == 0


def audit_stream(backbone: Backbone, registry: Registry, stream: Stream) -> list[AuditResult]:
    """Recompute the test predictions of a stream's learned deltas and compare them with the stored ones.

    They are bit-identical on the kind of machine, library versions and number of threads that learned them.

    Raises:
        NotFound: The stream was never run.
        InputError: The rows are no longer those that the deltas were learned from.
    """
    deltas = {position.task: position.delta for position in registry.stream(stream.name).positions}
    results = []
    for data in load_and_check(backbone, registry, stream):
        name = deltas.get(data.spec.name)
        stored = registry.delta(name) if name else None
        if stored is None or stored.predictions is None:
            continue
        delta = load_delta(registry.blobs.get(stored.values))
        task = prepare_task(backbone, data).with_kind_of(delta)
        before = deserialize_outputs(registry.blobs.get(stored.predictions))
        now = task.kind.outputs(ForwardContext(task.backbone, delta, task.test), delta.head)
        scores = [_score(task, outputs) for outputs in (before, now)]
        results.append(AuditResult(stored.task, stored.name, len(data.test), _count_changed_rows(before, now), *scores))
    return results


def _count_changed_rows(before: Outputs, now: Outputs) -> int:
    """Return how many rows differ in any bit; all of them where the shapes differ."""
    row_count = len(next(iter(now.values())))
    if any(name not in before or before[name].shape != tensor.shape for name, tensor in now.items()):
        return row_count
    differs = [(before[name] != tensor).reshape(row_count, -1).any(dim=1) for name, tensor in now.items()]
    return int(torch.stack(differs).any(dim=0).sum())


def _score(task: PreparedTask, outputs: Outputs) -> float:
    answers = task.kind.answers(task.backbone, outputs, task.test)
    return score_answers(task.kind, task.data.spec.metric, task.test, answers)
