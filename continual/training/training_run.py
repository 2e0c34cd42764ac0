"""Train one delta: AdamW on batches of similar length, best epoch on the validation rows.

Linear warm-up and decay, clipped gradients, the checkpoint's own dropout. Epoch 0, the start itself, is scored like
every other epoch, so that training never ends below it on the validation rows. Of epochs of one score, as a few
validation rows often give, the one of the lowest validation loss is the best.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, finalize, layout_of, pool_values
from continual.kinds import PreparedRows, kind_of_delta
from continual.training.frozen_layers import FrozenLayerCache, frozen_layer_cache
from continual.training.objective import TrainingObjective, training_objective
from continual.training.optimizer import AdamWWithSchedule
from continual.training.pruning import BudgetedPruning
from continual.training.state import Epoch, ScoredDelta, TrainingState, get_rng_state, set_rng_state
from continual.training.steps import EpochRequest, TrainingCoroutine, run_training
from tasks import Budget

StepCallback = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""
StateCallback = Callable[[TrainingState], None]
B = TypeVar("B")


@dataclass(frozen=True)
class TrainingResult:
    """The delta of the best epoch, the learning curve, and the cost.

    Attributes:
        delta: The delta of the best epoch, rounded as it is stored.
        curve: One point per epoch, the start first.
        best: The point of the best epoch.
        seconds: Seconds in training steps alone.
        examples_per_second: Rows through those steps per second; None where there were none.
    """

    delta: Delta
    curve: tuple[Epoch, ...]
    best: Epoch
    seconds: float
    examples_per_second: float | None

    @property
    def score(self) -> float:
        """The best validation score."""
        return self.best.score


@dataclass(frozen=True)
class TrainingRun(Generic[B]):
    """One training of one delta, alone (`run`) or with others (`train_jointly`); B: type of a batch.

    A method of several stages shares the epochs among them: each stage trains its own edits and the head, all else
    fixed, from the best epoch of the stage before. Neither `start` nor the backbone is changed.

    Attributes:
        backbone: The frozen backbone.
        start: The delta to train a copy of.
        objective: Batches, loss and validation score.
        learning_rate: The peak of the schedule.
        seed: The seed of all random numbers, dropout's among them.
        on_step: Called after each step.
        on_state: Called with the state before the first epoch and after each; its tensors are in use, so a callback
            that keeps them copies them (`to_tensors`).
        resume_from: The state of the same training, interrupted; it then ends as it would have, to the bit.
    """

    backbone: Backbone
    start: Delta
    objective: TrainingObjective[B]
    learning_rate: float
    seed: int
    on_step: StepCallback = lambda done, total: None
    on_state: StateCallback = lambda state: None
    resume_from: TrainingState | None = None

    def run(self) -> TrainingResult:
        """Train all epochs.

        Raises:
            TrainingError: The loss is not finite, or the device's memory does not hold a step of a single row.
        """
        return run_training(self, seed=self.seed)

    def epochs(self) -> TrainingCoroutine[TrainingResult]:
        """Yield the epochs that are left to train; return the result."""
        state = self.resume_from or self._initial_state()
        if self.resume_from is None:
            self.on_state(state)
        set_rng_state(state.rng_state, self.backbone.device)
        epochs, stages = self.objective.epochs, self.start.settings.stages
        progress = _Progress(self.on_step, done=len(state.curve) - 1, epochs=epochs)
        inputs = self.objective.loss_inputs if len(epochs) > 1 else None
        cache = frozen_layer_cache(self.backbone, self.start, inputs)
        for stage, stage_epochs in list(enumerate(_share_epochs(epochs, stages)))[state.stage :]:
            state = yield from self._train_stage(state.at_stage(stage), stage_epochs, progress, cache)
        # The stages that improved on nothing finalize their values too.
        delta = finalize(self.backbone, state.best.delta, stage=stages - 1)
        rate = self.objective.rows / state.seconds if state.seconds else None
        return TrainingResult(delta, state.curve, state.best.epoch, state.seconds, rate)

    def _initial_state(self) -> TrainingState:
        delta = finalize(self.backbone, self.start, stage=0).at_stage(0).quantise_to_float16()
        best = ScoredDelta(delta, Epoch(0, None, *self.objective.evaluate(delta)))
        rng_state = get_rng_state(self.backbone.device)
        return TrainingState(0, 0, self.start, {}, (best.epoch,), best, None, 0.0, rng_state)

    def _train_stage(
        self,
        state: TrainingState,
        epochs: Sequence[Sequence[B]],
        progress: "_Progress",
        cache: FrozenLayerCache | None,
    ) -> TrainingCoroutine[TrainingState]:
        """Train the edits of one stage for those of its epochs that are left; return the state after them."""
        delta = state.current.trainable(self.backbone.device, state.stage).at_stage(state.stage)
        layout, pools = pool_values(layout_of(self.backbone, delta))
        delta = replace(delta, values=layout.values)
        optimizer = self._optimizer(delta, pools, state, epochs)
        for batches in epochs[state.epochs :]:
            result = yield EpochRequest(
                self.backbone, delta, layout, pools, batches, self.objective, optimizer, progress.step, cache
            )
            stored = finalize(self.backbone, delta.detached(), stage=state.stage).quantise_to_float16()
            loss = sum(result.losses) / len(result.losses)
            point = ScoredDelta(stored, Epoch(len(state.curve), loss, *self.objective.evaluate(stored)))
            state = replace(
                state,
                epochs=state.epochs + 1,
                current=delta,
                optimizer_state=optimizer.state_tensors,
                curve=(*state.curve, point.epoch),
                best=state.best.better_of(point),
                # Of equal epochs of a stage the later one is the start of the next.
                best_of_stage=point.better_of(state.best_of_stage) if state.best_of_stage else point,
                seconds=state.seconds + result.seconds,
                rng_state=get_rng_state(self.backbone.device),
            )
            self.on_state(state)
        return state

    def _optimizer(
        self, delta: Delta, pools: Sequence[Tensor], state: TrainingState, epochs: Sequence[Sequence[B]]
    ) -> AdamWWithSchedule:
        head = () if delta.head is None else (delta.head.weight, delta.head.bias)
        leaves = [tensor for tensor in (*pools, *head) if tensor.requires_grad]
        done, steps = (sum(map(len, part)) for part in (epochs[: state.epochs], epochs))
        resumed = state.optimizer_state
        pruning = BudgetedPruning(self.backbone, delta, stage=state.stage, state=resumed)
        return AdamWWithSchedule(
            leaves, learning_rate=self.learning_rate, steps=steps, done=done, state=resumed, pruning=pruning
        )


def train(
    backbone: Backbone,
    start: Delta,
    *,
    rows: PreparedRows,
    validation: PreparedRows,
    budget: Budget,
    metric: str,
    seed: int,
) -> TrainingResult:
    """Train a copy of `start` on `rows`; return the delta of its best epoch on `validation`."""
    kind = kind_of_delta(start)
    objective = training_objective(backbone, kind, rows, validation=validation, budget=budget, metric=metric, seed=seed)
    return TrainingRun(backbone, start, objective, learning_rate=budget.learning_rate, seed=seed).run()


def _share_epochs(epochs: Sequence[Sequence[B]], stages: int) -> list[Sequence[Sequence[B]]]:
    """Share the epochs among the stages as evenly as possible, earlier stages first."""
    ends = [-(-len(epochs) * (stage + 1) // stages) for stage in range(stages)]
    return [epochs[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


class _Progress:
    def __init__(self, on_step: StepCallback, *, done: int, epochs: Sequence[Sequence[B]]) -> None:
        self._on_step, self._total, self._done = on_step, sum(map(len, epochs)), sum(map(len, epochs[:done]))

    def step(self) -> None:
        self._done += 1
        self._on_step(self._done, self._total)
