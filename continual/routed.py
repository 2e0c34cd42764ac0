"""How a stream's tasks fare when nobody says which task an input belongs to."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from continual.backbone import Backbone
from continual.deltas import load_delta
from continual.errors import BlobError
from continual.evaluate import measure
from continual.kinds import Outputs, Seen, labels_of
from continual.learn import Learned, Task, ready
from continual.record import outputs_from_bytes
from continual.routing import build_router
from continual.signature import Signature
from registry import Registry, Score
from tasks import TaskData

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examined:
    """A learned task's test rows: their frozen features [N, D], what is right, what its own delta answers, and what is
    worth nothing as an answer."""

    metric: str
    kind: str
    own: Signature
    test_features: Tensor
    truth: Sequence[Any]
    answers: Sequence[Any]
    wrong: Sequence[Any]


def examine(learned: Learned) -> Examined:
    """What routing needs of a task that was just learned."""
    return _examined(learned.task, learned.own, learned.test_features, learned.outputs)


def examine_stored(backbone: Backbone, registry: Registry, delta: str, data: TaskData) -> Examined:
    """The same of a task learned before: its answers and signature from the registry, its features taken again."""
    task, stored, blobs = ready(backbone, data), registry.delta(delta), registry.blobs
    try:
        outputs = outputs_from_bytes(blobs.get(stored.predictions)) if stored.predictions else None
    except BlobError as error:
        log.warning("%s answers its test rows again: %s", delta, error)
        outputs = None
    if outputs is None:
        learned = load_delta(blobs.get(stored.values))
        outputs = task.kind.outputs(Seen(task.backbone, learned, task.test), learned.head)
    signature = registry.signature(delta)
    own = Signature.from_bytes(blobs.get(signature.digest))
    return _examined(task, own, Seen(task.backbone, None, task.test).vectors, outputs)


def _examined(task: Task, own: Signature, test_features: Tensor, outputs: Outputs) -> Examined:
    kind, truth = task.kind, task.test.truth
    answers = labels_of(kind.answers(task.backbone, outputs, task.test))
    return Examined(task.data.spec.metric, kind.scored, own, test_features, truth, answers, kind.wrong(truth))


def complete_routed_scores(
    registry: Registry, examined: Mapping[str, Callable[[], Examined]], *, stream: str, step: int
) -> bool:
    """Measure the tasks learned up to position `step` of a stream, by their deltas, unless the registry has it all.

    False where these are not all any more: another controller has learned one meanwhile.
    """
    stored = {score.delta for score in registry.scores(stream=stream, mode="routed", step=step)}
    if stored >= examined.keys():
        return True
    found = routed_scores({delta: look() for delta, look in examined.items()}, stream=stream, step=step)
    return registry.write(lambda unit: unit.add_routed(stream, step, found))


def routed_scores(examined: Mapping[str, Examined], *, stream: str, step: int) -> dict[str, list[Score]]:
    """Score and routing accuracy of every delta's test rows, routed among the tasks of all of them.

    A row that goes to another task counts as a wrong answer, even where both tasks have a label of that name.
    """
    router = build_router({delta: task.own for delta, task in examined.items()})
    scores = {}
    for number, (delta, task) in enumerate(examined.items()):
        right = (router.route(task.test_features).tasks == number).tolist()
        answers = [own if ours else wrong for ours, own, wrong in zip(right, task.answers, task.wrong, strict=True)]
        measured = {
            task.metric: measure(task.metric, task.truth, answers, kind=task.kind),
            "routing_accuracy": measure("accuracy", [True] * len(right), right),
        }
        scores[delta] = [
            Score(split="test", metric=metric, mode="routed", stream=stream, step=step, **asdict(found))
            for metric, found in measured.items()
        ]
    return scores
