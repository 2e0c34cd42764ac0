"""Train a delta: one plain loop, whatever it learns from.

AdamW, linear warm-up and decay, gradients clipped, the checkpoint's own dropout, batches of like length, the best epoch
on the validation rows kept; epoch 0, the start itself, is a candidate, so training can only improve on those rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, finalize, layout_of, pool_values
from continual.kinds import PreparedRows, kind_of_delta
from continual.training.frozen_layers import FrozenLayerCache, frozen_layer_cache
from continual.training.objective import TrainingObjective, training_objective
from continual.training.optimizer import AdamWWithSchedule
from continual.training.state import Epoch, ScoredDelta, TrainingState, get_rng_state, set_rng_state
from continual.training.steps import EpochRequest, TrainingCoroutine, run_training
from tasks import Budget

StepCallback = Callable[[int, int], None]  # steps done, steps in all
StateCallback = Callable[[TrainingState], None]
B = TypeVar("B")


@dataclass(frozen=True)
class TrainingResult:
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
    rows: PreparedRows,
    validation: PreparedRows,
    budget: Budget,
    metric: str,
    seed: int,
    report: StepCallback = lambda done, total: None,
    course: TrainingState | None = None,
    keep: StateCallback = lambda course: None,
) -> TrainingResult:
    """Train a copy of `start` on `rows` for `budget.epochs`, by `follow`."""
    kind = kind_of_delta(start)
    lesson = training_objective(backbone, kind, rows, validation=validation, budget=budget, metric=metric, seed=seed)
    rate = budget.learning_rate
    return train_objective(
        backbone, start, lesson, learning_rate=rate, seed=seed, report=report, course=course, keep=keep
    )


def train_objective(
    backbone: Backbone,
    start: Delta,
    lesson: TrainingObjective[B],
    *,
    learning_rate: float,
    seed: int,
    report: StepCallback = lambda done, total: None,
    course: TrainingState | None = None,
    keep: StateCallback = lambda course: None,
) -> TrainingResult:
    """Train a copy of `start` through all epochs of a lesson; neither `start` nor the backbone changes.

    Raises LearnError when the loss is no longer a number. See `training` for all else.
    """
    stints = training_steps(
        backbone, start, lesson, learning_rate=learning_rate, report=report, course=course, keep=keep
    )
    return run_training(stints, seed=seed)


Training = TrainingCoroutine[TrainingResult]


def training_steps(
    backbone: Backbone,
    start: Delta,
    lesson: TrainingObjective[B],
    *,
    learning_rate: float,
    report: StepCallback = lambda done, total: None,
    course: TrainingState | None = None,
    keep: StateCallback = lambda course: None,
) -> Training:
    """The stints in which a copy of `start` learns a lesson, an epoch each; whoever does one sends what it came to.

    A method of several stages shares the epochs among them: each trains its own edits and the head, all else fixed,
    from the best epoch of the stage before. What is scored is what would be kept.

    keep: is shown where training stands before the first epoch and after each · course: go on from what was kept of
    the same training, which then ends as it would have, to the bit.
    """
    stages = start.settings.stages
    if course is None:
        kept = finalize(backbone, start, stage=0).quantise_to_float16()
        best = ScoredDelta(kept, Epoch(0, None, lesson.score(kept)))
        course = TrainingState(0, 0, start, {}, (best.epoch,), best, None, 0.0, get_rng_state(backbone.device))
        keep(course)
    set_rng_state(course.rng_state, backbone.device)
    progress = _Progress(report, done=len(course.curve) - 1, epochs=lesson.epochs)
    lower = frozen_layer_cache(backbone, start.settings, lesson.loss_inputs if len(lesson.epochs) > 1 else None)
    for stage, part in list(enumerate(_shares(lesson.epochs, stages)))[course.stage :]:
        course = yield from _stage(
            backbone, course.at_stage(stage), replace(lesson, epochs=part), learning_rate, progress, keep, lower
        )
    kept = finalize(backbone, course.best.delta, stage=stages - 1)  # stages that did not better it too
    return TrainingResult(kept, course.curve, course.seconds, lesson.rows / course.seconds if course.seconds else None)


def _shares(epochs: Sequence[Sequence[B]], stages: int) -> list[Sequence[Sequence[B]]]:
    """The epochs of each stage: as even as can be, the earlier ones longer."""
    ends = [-(-len(epochs) * (stage + 1) // stages) for stage in range(stages)]
    return [epochs[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def _stage(
    backbone: Backbone,
    course: TrainingState,
    lesson: TrainingObjective[B],
    learning_rate: float,
    progress: "_Progress",
    keep: StateCallback,
    lower: FrozenLayerCache | None,
) -> TrainingCoroutine[TrainingState]:
    """Train what belongs to a stage for what is left of its epochs; where training stands then."""
    epochs = lesson.epochs
    delta = course.current.trainable(backbone.device, course.stage)
    own, pools = pool_values(layout_of(backbone, delta))
    delta = replace(delta, values=own.values)
    heads = () if delta.head is None else (delta.head.weight, delta.head.bias)
    leaves = [tensor for tensor in (*pools, *heads) if tensor.requires_grad]
    done, steps = (sum(map(len, part)) for part in (epochs[: course.epochs], epochs))
    optimise = AdamWWithSchedule(
        leaves, learning_rate=learning_rate, steps=steps, done=done, moments=course.optimizer_state
    )
    for batches in epochs[course.epochs :]:
        spent = yield EpochRequest(backbone, delta, own, pools, batches, lesson, optimise, progress.step, lower)
        kept = finalize(backbone, delta.detached(), stage=course.stage).quantise_to_float16()
        loss = sum(spent.losses) / len(spent.losses)
        point = ScoredDelta(kept, Epoch(len(course.curve), loss, lesson.score(kept)))
        course = replace(
            course,
            epochs=course.epochs + 1,
            current=delta,
            optimizer_state=optimise.state_tensors,
            curve=(*course.curve, point.epoch),
            best=course.best.better_of(point),
            best_of_stage=point.better_of(course.best_of_stage)
            if course.best_of_stage
            else point,  # of equals the later
            seconds=course.seconds + spent.seconds,
            rng_state=get_rng_state(backbone.device),
        )
        keep(course)
    return course


class _Progress:
    def __init__(self, report: StepCallback, *, done: int, epochs: Sequence[Sequence[B]]) -> None:
        self._report, self._total, self._done = report, sum(map(len, epochs)), sum(map(len, epochs[:done]))

    def step(self) -> None:
        self._done += 1
        self._report(self._done, self._total)
