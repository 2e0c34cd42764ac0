"""Train one delta: one plain loop.

AdamW, linear warm-up and decay, gradients clipped, the checkpoint's own dropout, batches of like length, the best epoch
on the validation rows kept; epoch 0, the start itself, is a candidate, so training can only improve on those rows.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from continual.backbone import Backbone
from continual.course import Course, Epoch, Point, random_state, set_random_state
from continual.deltas import Delta, attached, finished, penalty
from continual.evaluate import metric_score
from continual.features import shuffled_batches
from continual.kinds import Kind, Prepared, Seen, kind_of_delta, labels_of
from continual.optimiser import Optimiser
from tasks import Budget

Report = Callable[[int, int], None]  # steps done, steps in all
Keep = Callable[[Course], None]
Batches = list[list[int]]  # the batches of one epoch


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
    """Train a copy of `start` on `rows` for `budget.epochs`; neither `start` nor the backbone changes.

    What is learned follows from the kind of the delta. A method of several stages shares the epochs among them: each
    trains its own edits and the head, all else fixed, from the best epoch of the stage before. What is scored is
    what would be kept.

    keep: is shown where training stands before the first epoch and after each · course: go on from what was kept of
    the same training, which then ends as it would have, to the bit.

    Raises LearnError when the loss is no longer a number.
    """
    generator = torch.Generator().manual_seed(seed)
    epochs = [shuffled_batches(rows.tokens.lengths, budget.batch_size, generator) for _ in range(budget.epochs)]
    kind, stages = kind_of_delta(start), start.settings.stages
    score = partial(score_of, backbone, kind, rows=validation, metric=metric)
    with _seeded(seed):
        if course is None:
            kept = finished(backbone, start, stage=0)
            best = Point(kept, Epoch(0, None, score(kept)))
            course = Course(0, 0, start, {}, (best.epoch,), best, None, 0.0, random_state(backbone.device))
            keep(course)
        set_random_state(course.random, backbone.device)
        progress = _Progress(report, done=len(course.curve) - 1, epochs=epochs)
        for stage, part in list(enumerate(_shares(epochs, stages)))[course.stage :]:
            course = course.at(stage)
            for reached in _epochs(backbone, kind, course, rows, part, budget.learning_rate, score, progress):
                keep(course := reached)
    seen = len(rows.tokens) * budget.epochs
    kept = finished(backbone, course.best.delta, stage=stages - 1)  # stages that did not better it too
    return Trained(kept, course.curve, course.seconds, seen / course.seconds if course.seconds else None)


def _shares(epochs: Sequence[Batches], stages: int) -> list[Sequence[Batches]]:
    """The epochs of each stage: as even as can be, the earlier ones longer."""
    ends = [-(-len(epochs) * (stage + 1) // stages) for stage in range(stages)]
    return [epochs[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def _epochs(
    backbone: Backbone,
    kind: Kind[Any],
    course: Course,
    rows: Prepared,
    epochs: Sequence[Batches],
    learning_rate: float,
    score: Callable[[Delta], float],
    progress: "_Progress",
) -> Iterator[Course]:
    """Train what belongs to a stage for what is left of its epochs; where training stands after each."""
    delta = course.trained.trainable(backbone.device, course.stage)
    leaves = [tensor for tensor in delta.tensors().values() if tensor.requires_grad]
    done, steps = (sum(map(len, part)) for part in (epochs[: course.epochs], epochs))
    optimise = Optimiser(leaves, learning_rate=learning_rate, steps=steps, done=done, moments=course.moments)
    for batches in epochs[course.epochs :]:
        began, losses = time.perf_counter(), []
        with attached(backbone, delta), backbone.dropping():
            for batch in batches:
                loss, extra = kind.loss(backbone, delta, rows, batch), penalty(backbone, delta)
                losses.append(optimise(loss if extra is None else loss + extra))
                progress.step()
        spent = time.perf_counter() - began
        kept = finished(backbone, delta.frozen(), stage=course.stage)
        point = Point(kept, Epoch(len(course.curve), sum(losses) / len(losses), score(kept)))
        course = replace(
            course,
            epochs=course.epochs + 1,
            trained=delta,
            moments=optimise.moments,
            curve=(*course.curve, point.epoch),
            best=course.best.or_better(point),
            of_stage=point.or_better(course.of_stage) if course.of_stage else point,  # of equals the later
            seconds=course.seconds + spent,
            random=random_state(backbone.device),
        )
        yield course


class _Progress:
    def __init__(self, report: Report, *, done: int, epochs: Sequence[Batches]) -> None:
        self._report, self._total, self._done = report, sum(map(len, epochs)), sum(map(len, epochs[:done]))

    def step(self) -> None:
        self._done += 1
        self._report(self._done, self._total)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """What is drawn while training, dropout among it, is the same for the same seed; nobody else's numbers change."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def score_of(backbone: Backbone, kind: Kind[Any], delta: Delta, *, rows: Prepared, metric: str) -> float:
    """The score of what a delta answers to rows of a kind."""
    outputs = kind.outputs(Seen(backbone, delta, rows), delta.head)
    answers = labels_of(kind.answers(backbone, outputs, rows))
    return metric_score(metric, rows.truth, answers, kind=kind.scored)
