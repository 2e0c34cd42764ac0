"""Proof that nothing was forgotten: every stored answer given again."""

from dataclasses import dataclass

import torch

from continual.backbones.backbone import Backbone
from continual.deltas import load_delta
from continual.kinds import ForwardContext, Outputs, answer_labels
from continual.learning.prepared import PreparedTask, prepare_task
from continual.learning.record import deserialize_outputs
from continual.metrics import metric_score
from continual.streams.preflight import load_and_check
from registry import Registry
from tasks import Stream


@dataclass(frozen=True)
class AuditResult:
    """A delta's answers to its test rows now and when it was learned.

    rows: their number · changed: how many of them are answered otherwise in any bit · before, now: the scores.
    """

    task: str
    delta: str
    rows: int
    changed: int
    before: float
    now: float

    @property
    def identical(self) -> bool:
        return self.changed == 0


def audit_stream(backbone: Backbone, registry: Registry, stream: Stream) -> list[AuditResult]:
    """Run every learned delta of a stream over its task's test rows again and compare what it says with what is stored.

    It is the same to the bit on the kind of machine, libraries and number of threads that learned them.
    Raises NotFound for a stream that was never run, InputError where its rows are no longer those that were learned.
    """
    deltas = {position.task: position.delta for position in registry.stream(stream.name).positions}
    found = []
    for data in load_and_check(backbone, registry, stream):
        name = deltas.get(data.spec.name)
        stored = registry.delta(name) if name else None
        if stored is None or stored.predictions is None:
            continue
        task, delta = prepare_task(backbone, data), load_delta(registry.blobs.get(stored.values))
        before = deserialize_outputs(registry.blobs.get(stored.predictions))
        now = task.kind.outputs(ForwardContext(task.backbone, delta, task.test), delta.head)
        scores = [_score(task, outputs) for outputs in (before, now)]
        found.append(AuditResult(stored.task, stored.name, len(data.test), _changed(before, now), *scores))
    return found


def _changed(before: Outputs, now: Outputs) -> int:
    """How many rows differ; all of them where not even their shapes are alike."""
    rows = len(next(iter(now.values())))
    if any(name not in before or before[name].shape != tensor.shape for name, tensor in now.items()):
        return rows
    differs = [(before[name] != tensor).reshape(rows, -1).any(dim=1) for name, tensor in now.items()]
    return int(torch.stack(differs).any(dim=0).sum())


def _score(task: PreparedTask, outputs: Outputs) -> float:
    answers = answer_labels(task.kind.answers(task.backbone, outputs, task.test))
    return metric_score(task.data.spec.metric, task.test.truth, answers, kind=task.kind.metric_kind)
