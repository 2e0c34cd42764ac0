"""Train a delta: one plain loop, whatever it learns from.

AdamW, linear warm-up and decay, gradients clipped, the checkpoint's own dropout, batches of like length, the best epoch
on the validation rows kept; epoch 0, the start itself, is a candidate, so training can only improve on those rows.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from continual.backbone import Backbone
from continual.course import Course, Epoch, Point, random_state, set_random_state
from continual.deltas import Delta, Laid, attached, finished, in_pools, laid, penalty
from continual.errors import LearnError
from continual.kinds import Prepared, kind_of_delta
from continual.lesson import Lesson, lesson_of
from continual.optimiser import Optimiser
from tasks import Budget

Report = Callable[[int, int], None]  # steps done, steps in all
Keep = Callable[[Course], None]
B = TypeVar("B")

OUT_OF_MEMORY = (
    "the device's memory does not hold a training step of one row; use a shorter max_length, a method that changes "
    "fewer or higher layers, or dtype bfloat16"
)


@dataclass(frozen=True)
class Trained:
    """The delta of the best epoch, its learning curve, and what it took.

    seconds: time in training steps alone · examples_per_second: rows through them, None where there were none.
    """

    delta: Delta
    curve: tuple[Epoch, ...]
    seconds: float
    examples_per_second: float | None

    @property
    def score(self) -> float:
        return max(epoch.score for epoch in self.curve)


def train(
    backbone: Backbone,
    start: Delta,
    *,
    rows: Prepared,
    validation: Prepared,
    budget: Budget,
    metric: str,
    seed: int,
    report: Report = lambda done, total: None,
    course: Course | None = None,
    keep: Keep = lambda course: None,
) -> Trained:
    """Train a copy of `start` on `rows` for `budget.epochs`, by `follow`."""
    kind = kind_of_delta(start)
    lesson = lesson_of(backbone, kind, rows, validation=validation, budget=budget, metric=metric, seed=seed)
    rate = budget.learning_rate
    return follow(backbone, start, lesson, learning_rate=rate, seed=seed, report=report, course=course, keep=keep)


def follow(
    backbone: Backbone,
    start: Delta,
    lesson: Lesson[B],
    *,
    learning_rate: float,
    seed: int,
    report: Report = lambda done, total: None,
    course: Course | None = None,
    keep: Keep = lambda course: None,
) -> Trained:
    """Train a copy of `start` through all epochs of a lesson; neither `start` nor the backbone changes.

    Raises LearnError when the loss is no longer a number. See `training` for all else.
    """
    stints = training(backbone, start, lesson, learning_rate=learning_rate, report=report, course=course, keep=keep)
    with seeded(seed):
        try:
            stint = next(stints)
            while True:
                stint = stints.send(alone(backbone, stint))
        except StopIteration as end:
            trained: Trained = end.value
            return trained


@dataclass(frozen=True)
class Stint(Generic[B]):
    """Batches that a delta is to learn from, with a step of its optimiser after each.

    own, pools: where the delta's values lie, which are views of the pools.
    """

    delta: Delta
    own: Laid
    pools: Sequence[Tensor]
    batches: Sequence[B]
    lesson: Lesson[B]
    optimise: Optimiser
    step: Callable[[], None]

    def loss(self, backbone: Backbone, loss: Tensor) -> Tensor:
        """The loss of a batch with what the delta's edits add to it."""
        extra = penalty(backbone, self.delta)
        return loss if extra is None else loss + extra


@dataclass(frozen=True)
class Spent:
    """What a stint came to: the loss of each batch, and the seconds it took."""

    losses: Sequence[float]
    seconds: float


Training = Generator[Stint[Any], Spent, Trained]


def alone(backbone: Backbone, stint: Stint[B]) -> Spent:
    """Do a stint."""
    began, losses, halvings = time.perf_counter(), [], 0
    with attached(backbone, stint.delta), backbone.dropping():
        for batch in stint.batches:
            loss, halvings = descend(backbone, stint, batch, halvings=halvings)
            losses.append(loss)
    return Spent(losses, time.perf_counter() - began)


def descend(backbone: Backbone, stint: Stint[B], batch: B, *, halvings: int) -> tuple[float, int]:
    """One step down the gradient of a batch, through what is attached: its loss, and how often it had to be halved.

        ∇ L = Σ_p s_p ∇ L_p

    for the parts p of a batch and the shares s_p that they have of its loss: where the device's memory does not hold a
    batch, it is halved, again and again, and the gradients of its parts are added up. Raises LearnError where not even
    single rows fit.
    """
    while True:
        parts = _parts(stint.lesson, batch, halvings)
        try:
            loss = sum(_added(backbone, stint, part, share) for part, share in parts)
            break
        except torch.OutOfMemoryError as error:
            if len(_parts(stint.lesson, batch, halvings + 1)) == len(parts):
                raise LearnError(f"{OUT_OF_MEMORY} ({str(error).splitlines()[0]})") from None
        stint.optimise.forget()
        halvings += 1
    stint.optimise.step()
    stint.step()
    return loss, halvings


def _added(backbone: Backbone, stint: Stint[B], part: B, share: float) -> float:
    """Add the gradient of a part of a batch, whose loss is this share of the batch's."""
    loss = share * stint.loss(backbone, stint.lesson.loss(stint.delta, part))
    value = stint.optimise.checked(loss)
    torch.autograd.backward(loss)
    return value


def _parts(lesson: Lesson[B], batch: B, halvings: int) -> list[tuple[B, float]]:
    parts = [(batch, 1.0)]
    for _ in range(halvings):
        parts = [(piece, share * own) for part, share in parts for piece, own in (lesson.halves(part) or [(part, 1.0)])]
    return parts


def training(
    backbone: Backbone,
    start: Delta,
    lesson: Lesson[B],
    *,
    learning_rate: float,
    report: Report = lambda done, total: None,
    course: Course | None = None,
    keep: Keep = lambda course: None,
) -> Training:
    """The stints in which a copy of `start` learns a lesson, an epoch each; whoever does one sends what it came to.

    A method of several stages shares the epochs among them: each trains its own edits and the head, all else fixed,
    from the best epoch of the stage before. What is scored is what would be kept.

    keep: is shown where training stands before the first epoch and after each · course: go on from what was kept of
    the same training, which then ends as it would have, to the bit.
    """
    stages = start.settings.stages
    if course is None:
        kept = finished(backbone, start, stage=0)
        best = Point(kept, Epoch(0, None, lesson.score(kept)))
        course = Course(0, 0, start, {}, (best.epoch,), best, None, 0.0, random_state(backbone.device))
        keep(course)
    set_random_state(course.random, backbone.device)
    progress = _Progress(report, done=len(course.curve) - 1, epochs=lesson.epochs)
    for stage, part in list(enumerate(_shares(lesson.epochs, stages)))[course.stage :]:
        course = yield from _stage(
            backbone, course.at(stage), replace(lesson, epochs=part), learning_rate, progress, keep
        )
    kept = finished(backbone, course.best.delta, stage=stages - 1)  # stages that did not better it too
    return Trained(kept, course.curve, course.seconds, lesson.rows / course.seconds if course.seconds else None)


def _shares(epochs: Sequence[Sequence[B]], stages: int) -> list[Sequence[Sequence[B]]]:
    """The epochs of each stage: as even as can be, the earlier ones longer."""
    ends = [-(-len(epochs) * (stage + 1) // stages) for stage in range(stages)]
    return [epochs[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def _stage(
    backbone: Backbone, course: Course, lesson: Lesson[B], learning_rate: float, progress: "_Progress", keep: Keep
) -> Generator[Stint[B], Spent, Course]:
    """Train what belongs to a stage for what is left of its epochs; where training stands then."""
    epochs = lesson.epochs
    delta = course.trained.trainable(backbone.device, course.stage)
    own, pools = in_pools(laid(backbone, delta))
    delta = replace(delta, values=own.values)
    heads = () if delta.head is None else (delta.head.weight, delta.head.bias)
    leaves = [tensor for tensor in (*pools, *heads) if tensor.requires_grad]
    done, steps = (sum(map(len, part)) for part in (epochs[: course.epochs], epochs))
    optimise = Optimiser(leaves, learning_rate=learning_rate, steps=steps, done=done, moments=course.moments)
    for batches in epochs[course.epochs :]:
        spent = yield Stint(delta, own, pools, batches, lesson, optimise, progress.step)
        kept = finished(backbone, delta.frozen(), stage=course.stage)
        loss = sum(spent.losses) / len(spent.losses)
        point = Point(kept, Epoch(len(course.curve), loss, lesson.score(kept)))
        course = replace(
            course,
            epochs=course.epochs + 1,
            trained=delta,
            moments=optimise.moments,
            curve=(*course.curve, point.epoch),
            best=course.best.or_better(point),
            of_stage=point.or_better(course.of_stage) if course.of_stage else point,  # of equals the later
            seconds=course.seconds + spent.seconds,
            random=random_state(backbone.device),
        )
        keep(course)
    return course


class _Progress:
    def __init__(self, report: Report, *, done: int, epochs: Sequence[Sequence[B]]) -> None:
        self._report, self._total, self._done = report, sum(map(len, epochs)), sum(map(len, epochs[:done]))

    def step(self) -> None:
        self._done += 1
        self._report(self._done, self._total)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What is drawn while training, dropout among it, is the same for the same seed; nobody else's numbers change."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
