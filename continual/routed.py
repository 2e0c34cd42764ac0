"""How a stream's tasks fare when nobody says which task an input belongs to."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from continual.backbone import Backbone
from continual.deltas import load_delta
from continual.evaluate import logits, measure
from continual.features import features
from continual.learn import Learned, ready
from continual.record import answers_from_bytes
from continual.routing import build_router
from continual.signature import Signature
from registry import Registry, Score
from tasks import TaskData


@dataclass(frozen=True)
class Examined:
    """A learned task's test rows: their frozen features [N, D], true classes [N], and its own delta's answers [N]."""

    metric: str
    own: Signature
    test_features: Tensor
    classes: Tensor
    answers: Tensor


def examine(learned: Learned) -> Examined:
    """What routing needs of a task that was just learned."""
    task = learned.task
    return Examined(
        task.data.spec.metric, learned.own, learned.test_features, task.test.classes, learned.answers.argmax(dim=1)
    )


def examine_stored(backbone: Backbone, registry: Registry, delta: str, data: TaskData) -> Examined:
    """The same of a task learned before: its answers and signature from the registry, its features taken again."""
    task, stored, blobs = ready(backbone, data), registry.delta(delta), registry.blobs
    signature = registry.signature(task.data.spec.name, backbone.fingerprint)
    if stored.predictions:
        answers = answers_from_bytes(blobs.get(stored.predictions))
    else:
        answers = logits(backbone, load_delta(blobs.get(stored.digest)), task.test.tokens)
    return Examined(
        data.spec.metric,
        Signature.from_bytes(blobs.get(signature.digest)),
        features(backbone, task.test.tokens),
        task.test.classes,
        answers.argmax(dim=1),
    )


def complete_routed_scores(
    registry: Registry, examined: Mapping[str, Callable[[], Examined]], *, stream: str, step: int
) -> None:
    """Measure the tasks learned up to position `step` of a stream, by their deltas, unless the registry has it all."""
    stored = {score.delta for score in registry.scores(stream=stream, mode="routed") if score.step == step}
    if stored >= examined.keys():
        return
    found = routed_scores({delta: look() for delta, look in examined.items()}, stream=stream, step=step)
    with registry.unit() as unit:
        for delta, scores in found.items():
            unit.add_scores(delta, scores)


def routed_scores(examined: Mapping[str, Examined], *, stream: str, step: int) -> dict[str, list[Score]]:
    """Score and routing accuracy of every delta's test rows, routed among the tasks of all of them.

    A row that goes to another task counts as a wrong answer (the class after the true one), even where both tasks have
    a label of that name.
    """
    router = build_router({delta: task.own for delta, task in examined.items()})
    scores = {}
    for number, (delta, task) in enumerate(examined.items()):
        right = router.route(task.test_features).tasks == number
        wrong = (task.classes + 1) % len(task.own.counts)
        answers = torch.where(right, task.answers, wrong)
        measured = {
            task.metric: measure(task.metric, task.classes.tolist(), answers.tolist()),
            "routing_accuracy": measure("accuracy", [1] * len(right), right.long().tolist()),
        }
        scores[delta] = [
            Score(split="test", metric=metric, mode="routed", stream=stream, step=step, **asdict(found))
            for metric, found in measured.items()
        ]
    return scores
