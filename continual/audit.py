"""Proof that nothing was forgotten: every stored answer given again."""

from dataclasses import dataclass

from continual.backbone import Backbone
from continual.controller import check
from continual.deltas import load_delta
from continual.evaluate import logits, metric_score
from continual.learn import ready
from continual.record import answers_from_bytes
from registry import Registry
from tasks import Stream


@dataclass(frozen=True)
class Audited:
    """A delta's answers to its test rows now and when it was learned.

    rows: their number · changed: how many logits rows differ in any bit · before, now: the scores, fractions.
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


def audit_stream(backbone: Backbone, registry: Registry, stream: Stream) -> list[Audited]:
    """Run every learned delta of a stream over its task's test rows again and compare its logits with the stored ones.

    Logits are the same to the bit on the kind of machine, libraries and number of threads that learned them.
    Raises NotFound for a stream that was never run, InputError where its rows are no longer those that were learned.
    """
    deltas = {position.task: position.delta for position in registry.stream(stream.name).positions}
    found = []
    for data in check(backbone, registry, stream):
        name = deltas.get(data.spec.name)
        stored = registry.delta(name) if name else None
        if stored is None or stored.predictions is None:
            continue
        task = ready(backbone, data)
        before = answers_from_bytes(registry.blobs.get(stored.predictions))
        now = logits(backbone, load_delta(registry.blobs.get(stored.digest)), task.test.tokens)
        changed = int((before != now).any(dim=1).sum()) if before.shape == now.shape else len(now)
        truth = task.test.classes.tolist()
        scores = [metric_score(stored.metric, truth, answers.argmax(dim=1).tolist()) for answers in (before, now)]
        found.append(Audited(stored.task, stored.name, len(now), changed, *scores))
    return found
