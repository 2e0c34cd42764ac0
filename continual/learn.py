"""The story of one task: from its rows to a delta that the registry remembers.

rows → signature in frozen features → the method, where it is to be chosen → neighbours ranked → a start chosen on
held-out rows, or what the task learned before → training → scores. Nothing is written here: `record` writes all of it
in one unit of work, so a task that fails, or is killed, leaves no trace but a checkpoint to go on from.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from continual.backbone import Backbone
from continual.checkpoint import Checkpoint, Plan
from continual.course import Course
from continual.deltas import Delta, method_settings
from continual.described import routing_of, signature_of
from continual.evaluate import measure
from continual.experts import opinion_of
from continual.features import making_room
from continual.frozen import Frozen
from continual.kinds import Answer, Kind, Outputs, Prepared, Seen, Start, fitted, kind_of, labels_of
from continual.lesson import lesson_of
from continual.neighbours import learned_before, nearest_learned, spanning
from continual.routing import Opinion, Statistics
from continual.search import Arm, Trial, arms, halve, possible, search_of
from continual.signature import Signature
from continual.stints import Clock, Stints, by_itself
from continual.train import Keep, Report, Trained, Training, training
from continual.warmstart import (
    TRIAL,
    Candidate,
    Neighbour,
    best_neighbour,
    choose,
    from_scratch,
    judge,
    mixture,
    started,
)
from registry import Mode, Registry, Score
from tasks import Budget, Method, TaskData, WarmStart
from tasks.rows import sample


@dataclass(frozen=True)
class Task:
    """A task whose rows are ready for the backbone, and how it is to be learned.

    backbone: as the task's kind needs it.
    """

    backbone: Backbone
    data: TaskData
    kind: Kind[Any]
    train: Prepared
    validation: Prepared
    test: Prepared
    method: Method
    warm_start: WarmStart
    budget: Budget

    @property
    def seen(self) -> tuple[Seen[Any], Seen[Any], Seen[Any]]:
        """Its train, validation and test rows through the frozen backbone."""
        train, validation, test = (Seen(self.backbone, None, rows) for rows in (self.train, self.validation, self.test))
        return train, validation, test

    def routing(self, delta: Delta | None, *, train: Seen[Any], held_out: Seen[Any]) -> Statistics:
        """What a router needs to know of it, of its rows as `seen` and of some of them through its delta, if any."""
        length = self.budget.max_length
        return routing_of(self.kind, self.data, delta, train=train, held_out=held_out, max_length=length)

    def by(self, arm: Arm) -> "Task":
        """The task as it is learned by this method at this learning rate."""
        budget = self.budget.model_copy(update={"learning_rate": arm.learning_rate})
        return replace(self, method=arm.method, budget=budget)


@dataclass(frozen=True)
class Learned:
    """All that learning a task brought.

    own: the task's signature in frozen features · routing: what a router needs to know of it · tested: its test rows
    through the frozen backbone · outputs, opinion: what the delta says of them · seconds: all but what `measure_gain`
    adds · tried: by a method search.
    """

    task: Task
    start: Candidate
    scratch: Candidate
    trained: Trained
    own: Signature
    routing: Statistics
    scores: tuple[Score, ...]
    tested: Frozen
    outputs: Outputs
    opinion: Opinion[Answer]
    seconds: float
    tried: tuple[Trial, ...]


def ready(backbone: Backbone, data: TaskData) -> Task:
    """Tokenize the rows of a task whose spec has been filled in from its stream."""
    spec = data.spec
    if not (spec.method and spec.warm_start and spec.budget):
        raise ValueError(f"task {spec.name!r} lacks a method, warm start or budget; take it from Stream.resolved()")
    backbone = making_room(backbone, *possible(spec.method))
    kind = kind_of(backbone, data)
    prepare = partial(kind.prepare, backbone, max_length=spec.budget.max_length)
    return Task(
        fitted(backbone, kind),
        data,
        kind,
        train=prepare(data.train),
        validation=prepare(data.validation),
        test=prepare(data.test),
        method=spec.method,
        warm_start=spec.warm_start,
        budget=spec.budget,
    )


def learning(
    registry: Registry,
    task: Task,
    *,
    seed: int,
    measure_gain: bool = False,
    report: Report = lambda done, total: None,
    checkpoint: Checkpoint | None = None,
    keep: Callable[[Checkpoint], None] = lambda checkpoint: None,
) -> Stints[Learned]:
    """The stints in which one task is learned on top of what the registry holds, and what it came to.

    measure_gain: where a warm start was taken, train from scratch as well, and keep that score beside the delta's own ·
    keep: is shown how far learning has come, before the first epoch and after each · checkpoint: go on from there.

    Raises LearnError when training fails.
    """
    clock = Clock(checkpoint.seconds if checkpoint else 0.0)
    backbone, kind = task.backbone, task.kind
    rows, held_out, tested = task.seen
    own = signature_of(kind, rows)
    begin = kind.start(rows, held_out)
    plan = checkpoint.plan if checkpoint else planned(registry, task, own, begin, seed=seed)
    task = task.by(plan.arm)
    settings, scratch = method_settings(task.method), from_scratch(begin, plan.spanning)
    others = possible_starts(task, scratch, plan.neighbours, rows=rows, held_out=held_out)
    starts = {candidate.names: candidate for candidate in (scratch, *others)}
    if checkpoint and checkpoint.start in starts:
        start, course = starts[checkpoint.start], checkpoint.course
    else:  # an average may be another one on another machine
        tried, course = partial(attempt, task, seed=seed), None
        start = choose(backbone, task.warm_start, scratch=scratch, others=others, settings=settings, tried=tried)

    def reached(course: Course) -> None:
        keep(Checkpoint(plan, start.names, course, clock.seconds))

    trained = yield from clock.through(
        training_from(task, start, seed=seed, report=report, course=course, keep=reached)
    )

    told = Seen(backbone, trained.delta, task.test)
    outputs = kind.outputs(told, trained.delta.head)
    routing = task.routing(trained.delta, train=rows, held_out=held_out)
    scores = [
        *_curve(task, trained),
        _score(task, "oracle", outputs),
        _score(task, "frozen", kind.outputs(tested, scratch.start.head)),
    ]
    if best := best_neighbour(others):  # without training: the forward transfer
        scores.append(_score(task, "neighbour", kind.outputs(Seen(backbone, best.delta, task.test), best.plain.head)))
    seconds = clock.seconds
    if measure_gain and start is not scratch:
        alone = (yield from training_from(task, scratch, seed=seed, report=report)).delta
        scores.append(_score(task, "scratch", kind.outputs(Seen(backbone, alone, task.test), alone.head)))
    opinion = opinion_of(kind, told, outputs, evidence=routing.evidence)
    return Learned(
        task, start, scratch, trained, own, routing, tuple(scores), tested.frozen, outputs, opinion, seconds, plan.tried
    )


def planned(registry: Registry, task: Task, own: Signature, begin: Start, *, seed: int) -> Plan:
    """What is decided before a task is trained: method and learning rate, and which learned deltas it looks at."""
    best, tried = decided(task, from_scratch(begin), seed=seed)
    name, settings = task.data.spec.name, method_settings(best.method)
    before = () if task.warm_start == "scratch" else learned_before(task.backbone, registry, task.data)
    near = nearest_learned(task.backbone, registry, own, task=name, labels=task.data.labels, settings=settings)
    return Plan(best, tried, spanning(task.backbone, registry, settings, task=name), (*before, *near))


def possible_starts(
    task: Task, scratch: Candidate, neighbours: Sequence[Neighbour], *, rows: Seen[Any], held_out: Seen[Any]
) -> list[Candidate]:
    """Every neighbour as a start, and the average of those that are of use."""
    kind, settings = task.kind, method_settings(task.method)
    found = [judge(kind, (near, 1.0), delta=near.delta, rows=rows, held_out=held_out) for near in neighbours]
    averaging = task.warm_start in ("merge", "auto")
    if averaging and (mixed := mixture(task.backbone, settings, scratch=scratch, others=found)):
        delta, sources = mixed
        found.append(judge(kind, *sources, delta=delta, rows=rows, held_out=held_out))
    return found


def decided(task: Task, scratch: Candidate, *, seed: int) -> tuple[Arm, tuple[Trial, ...]]:
    """The method and learning rate that a search finds for a task, and what was tried.

    A task that names its method keeps what it says.
    """
    search = search_of(task.method)
    if search is None:
        return Arm(task.method, task.budget.learning_rate), ()

    def score(arm: Arm, count: int) -> float:
        return train_from(_on_few(task.by(arm), count, seed=seed), scratch, seed=seed).score

    best, tried = halve(arms(task.backbone, search, task.budget), len(task.data.train), score)
    return best, tuple(tried)


def _on_few(task: Task, count: int, *, seed: int) -> Task:
    """The task with so many of its train rows."""
    few = sample(task.data.train, max(count, len(task.data.labels)), seed=seed, keep_labels=True)
    return replace(task, train=task.kind.prepare(task.backbone, few, max_length=task.budget.max_length))


def attempt(task: Task, start: Candidate, *, seed: int) -> float:
    """The score on held-out rows after one epoch of a few rows."""
    few = _on_few(task, TRIAL * task.budget.batch_size, seed=seed)
    budget = task.budget.model_copy(update={"epochs": min(task.budget.epochs, 1)})
    return train_from(replace(few, budget=budget), start, seed=seed).score


def train_from(task: Task, start: Candidate, *, seed: int, keep: Keep = lambda course: None) -> Trained:
    """Train the task's method within its budget from a start, by itself."""
    return by_itself(training_from(task, start, seed=seed, keep=keep), seed=seed)


def training_from(
    task: Task,
    start: Candidate,
    *,
    seed: int,
    report: Report = lambda done, total: None,
    course: Course | None = None,
    keep: Keep = lambda course: None,
) -> Training:
    """The stints of that, or of going on with it from where it was kept."""
    method, settings = task.method.name, method_settings(task.method)
    delta = started(task.backbone, task.kind, start, method=method, settings=settings, seed=seed)
    lesson = lesson_of(
        task.backbone,
        task.kind,
        task.train,
        validation=task.validation,
        budget=task.budget,
        metric=task.data.spec.metric,
        seed=seed,
    )
    rate = task.budget.learning_rate
    return training(task.backbone, delta, lesson, learning_rate=rate, report=report, course=course, keep=keep)


def _score(task: Task, mode: Mode, outputs: Outputs) -> Score:
    """The score of what was said of the test rows."""
    metric, answers = task.data.spec.metric, task.kind.answers(task.backbone, outputs, task.test)
    found = measure(metric, task.test.truth, labels_of(answers), kind=task.kind.scored)
    return Score(split="test", metric=metric, mode=mode, **asdict(found))


def _curve(task: Task, trained: Trained) -> Iterator[Score]:
    """The learning curve, and its best point as the delta's own score on the validation rows."""
    metric, rows, seen = task.data.spec.metric, len(task.data.validation), len(task.data.train)
    yield Score(split="validation", metric=metric, value=trained.score, rows=rows)
    for epoch in trained.curve:
        yield Score(split="validation", metric=metric, value=epoch.score, rows=rows, step=epoch.number, mode="curve")
        if epoch.loss is not None:
            yield Score(split="train", metric="loss", value=epoch.loss, rows=seen, step=epoch.number, mode="curve")
