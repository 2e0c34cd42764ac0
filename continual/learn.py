"""The story of one task: from its rows to a delta that the registry remembers.

rows → signature in frozen features → neighbours ranked → a start chosen on held-out rows → training → scores. Nothing
is written here: `record` writes all of it in one unit of work, so a task that fails, or is killed, leaves no trace.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial

from torch import Tensor

from continual.backbone import Backbone
from continual.deltas import method_settings
from continual.evaluate import Prepared, logits, measure, prepare
from continual.features import features, longest_text
from continual.neighbours import nearest_learned
from continual.signature import Signature
from continual.train import Report, Trained, train
from continual.warmstart import Candidate, choose, judge, started
from registry import Mode, Registry, Score
from tasks import Budget, Method, TaskData, WarmStart


@dataclass(frozen=True)
class Task:
    """A task whose rows are ready for the backbone, and how it is to be learned."""

    data: TaskData
    train: Prepared
    validation: Prepared
    test: Prepared
    method: Method
    warm_start: WarmStart
    budget: Budget

    @property
    def classes(self) -> int:
        return len(self.data.labels)


@dataclass(frozen=True)
class Learned:
    """All that learning a task brought.

    own: the task's signature in frozen features · test_features [N, D]: frozen features of its test rows ·
    answers [N, C]: the delta's logits for them · seconds: all but what `measure_gain` adds.
    """

    task: Task
    start: Candidate
    trained: Trained
    own: Signature
    scores: tuple[Score, ...]
    test_features: Tensor
    answers: Tensor
    seconds: float


def ready(backbone: Backbone, data: TaskData) -> Task:
    """Tokenize the rows of a task whose spec has been filled in from its stream."""
    spec = data.spec
    if not (spec.method and spec.warm_start and spec.budget):
        raise ValueError(f"task {spec.name!r} lacks a method, warm start or budget; take it from Stream.resolved()")
    length = min(spec.budget.max_length, longest_text(backbone, method_settings(spec.method)))
    tokens = partial(prepare, backbone, labels=data.labels, max_length=length)
    return Task(
        data,
        train=tokens(data.train),
        validation=tokens(data.validation),
        test=tokens(data.test),
        method=spec.method,
        warm_start=spec.warm_start,
        budget=spec.budget,
    )


def learn(
    backbone: Backbone,
    registry: Registry,
    task: Task,
    *,
    seed: int,
    measure_gain: bool = False,
    report: Report = lambda done, total: None,
) -> Learned:
    """Learn one task on top of what the registry holds.

    measure_gain: where a warm start was taken, train from scratch as well, and keep that score beside the delta's own.

    Raises LearnError when training fails.
    """
    began = time.perf_counter()
    scratch = judge(backbone, None, rows=task.train, held_out=task.validation, classes=task.classes)
    settings = method_settings(task.method)
    neighbours = [
        judge(backbone, neighbour, rows=task.train, held_out=task.validation, classes=task.classes)
        for neighbour in nearest_learned(backbone, registry, scratch.own, task=task.data.spec.name, settings=settings)
    ]
    start = choose(task.warm_start, scratch, neighbours, settings)
    trained = train_from(backbone, task, start, seed=seed, report=report)

    test_features = features(backbone, task.test.tokens)
    answers = logits(backbone, trained.delta, task.test.tokens)
    scores = [
        *_curve(task, trained),
        _score(task, "oracle", answers),
        _score(task, "frozen", scratch.head(test_features)),
    ]
    if neighbours:  # what was learned before, without training: the forward transfer
        best = max(neighbours, key=lambda candidate: candidate.head.accuracy)
        there = features(backbone, task.test.tokens, delta=best.delta)
        scores.append(_score(task, "neighbour", best.head(there)))
    seconds = time.perf_counter() - began
    if measure_gain and start is not scratch:
        alone = train_from(backbone, task, scratch, seed=seed, report=report).delta
        scores.append(_score(task, "scratch", logits(backbone, alone, task.test.tokens)))
    return Learned(task, start, trained, scratch.own, tuple(scores), test_features, answers, seconds)


def train_from(backbone: Backbone, task: Task, start: Candidate, *, seed: int, report: Report) -> Trained:
    """Train the task's method within its budget from a start."""
    delta = started(
        backbone,
        start,
        method=task.method.name,
        settings=method_settings(task.method),
        labels=task.data.labels,
        seed=seed,
    )
    return train(
        backbone,
        delta,
        rows=task.train,
        validation=task.validation,
        budget=task.budget,
        metric=task.data.spec.metric,
        seed=seed,
        report=report,
    )


def _score(task: Task, mode: Mode, answers: Tensor) -> Score:
    """The score of logits [N, C] for the test rows."""
    metric = task.data.spec.metric
    found = measure(metric, task.test.classes.tolist(), answers.argmax(dim=1).tolist())
    return Score(split="test", metric=metric, mode=mode, **asdict(found))


def _curve(task: Task, trained: Trained) -> Iterator[Score]:
    """The learning curve, and its best point as the delta's own score on the validation rows."""
    metric, rows = task.data.spec.metric, len(task.validation)
    yield Score(split="validation", metric=metric, value=trained.score, rows=rows)
    for epoch in trained.curve:
        yield Score(split="validation", metric=metric, value=epoch.score, rows=rows, step=epoch.number, mode="curve")
        if epoch.loss is not None:
            yield Score(
                split="train", metric="loss", value=epoch.loss, rows=len(task.train), step=epoch.number, mode="curve"
            )
