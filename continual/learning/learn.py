"""Learn one task: from its rows to a delta, scores and statistics, ready to be registered.

signature in frozen features → method, searched where it is `auto` → neighbours ranked → start chosen on the validation
rows, scratch among the candidates → training → scores. Nothing is written here: `register_learned` writes all of it in
one unit of work, so that a task that fails, or is killed, leaves no trace but a checkpoint to resume from.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import isfinite
from typing import Any

from continual.deltas import Delta, Head, method_settings
from continual.features.random_features import FrozenFeatures
from continual.features.signature import Signature
from continual.inference.opinions import opinion_from_outputs
from continual.inference.task_statistics import task_signature
from continual.kinds import Answer, ForwardContext, HeadStart, Outputs
from continual.kinds.scoring import score_answers, score_answers_with_interval, secondary_scores
from continual.learning.checkpoint import Checkpoint, TaskPlan
from continual.learning.prepared import PreparedTask
from continual.learning.readout import views_at_best_readout
from continual.reports.report import BASELINE, LOSS, baseline_fields
from continual.routing import Opinion, RoutingStatistics
from continual.training.method_search import (
    SearchCandidate,
    SearchTrial,
    search_candidates,
    search_settings,
    successive_halving,
)
from continual.training.objective import Evaluation
from continual.training.state import TrainingState
from continual.training.steps import Stopwatch, TrainingCoroutine
from continual.training.training_run import StepCallback, TrainingResult
from continual.transfer.neighbours import nearest_tasks, previous_version, subspace_deltas
from continual.transfer.warm_start import (
    TRIAL_BATCHES,
    Neighbour,
    WarmStartCandidate,
    average_candidate,
    best_neighbour,
    choose_start,
    evaluate_candidate,
    from_scratch,
)
from registry import Registry, Score, ScoreMode


@dataclass(frozen=True)
class LearnedTask:
    """All that learning a task produced.

    Attributes:
        task: The task, with the method and learning rate that were chosen.
        start: The start that was chosen.
        scratch: The start from scratch, for comparison.
        trained: The delta, the learning curve, the cost.
        signature: The task's statistics in frozen features.
        routing: The statistics that a router needs.
        scores: All scores, the learning curve among them.
        frozen_test_features: The test rows through the frozen backbone.
        outputs: The delta's outputs for the test rows.
        opinion: The delta's answers to the test rows, and how well the rows fit the delta.
        seconds: The time of learning, without what `measure_gain` adds.
        search_trials: The trials of the method search; empty where the method was named.
    """

    task: PreparedTask
    start: WarmStartCandidate
    scratch: WarmStartCandidate
    trained: TrainingResult
    signature: Signature
    routing: RoutingStatistics
    scores: tuple[Score, ...]
    frozen_test_features: FrozenFeatures
    outputs: Outputs
    opinion: Opinion[Answer]
    seconds: float
    search_trials: tuple[SearchTrial, ...]

    @property
    def training(self) -> dict[str, Any]:
        """The fields of the report's `per_task` about validation rows and epochs."""
        alone = next(score for score in self.scores if (score.split, score.mode) == ("validation", "oracle"))
        return {
            "validation_score": alone.value,
            "validation_low": alone.low,
            "validation_high": alone.high,
            "validation_rows": alone.rows,
            "best_epoch": self.trained.best.number,
            "epochs": len(self.trained.curve) - 1,
        }

    @property
    def baseline(self) -> dict[str, Any]:
        """The fields of the report's `per_task` about the score and that of answers without learning."""
        alone = next(score for score in self.scores if (score.split, score.mode) == ("test", "oracle"))
        baseline = next((score for score in self.scores if score.metric == BASELINE), None)
        value = baseline.value if baseline else None
        return {"score": alone.value, "test_rows": alone.rows, **baseline_fields(self.task.kind.metric_kind, value)}


@dataclass(frozen=True)
class LearningRun:
    """One task learned end to end on top of the registry's contents; a `Trainable`.

    Attributes:
        registry: Read for neighbours and earlier versions; nothing is written.
        task: The prepared task.
        seed: The seed of all random numbers.
        measure_gain: Whether to train from scratch as well where a warm start was taken, for its score.
        on_step: Called after each training step.
        on_checkpoint: Called before the first epoch and after each.
        resume_from: A checkpoint of the same task, interrupted.
    """

    registry: Registry
    task: PreparedTask
    seed: int
    measure_gain: bool = False
    on_step: StepCallback = lambda done, total: None
    on_checkpoint: Callable[[Checkpoint], None] = lambda checkpoint: None
    resume_from: Checkpoint | None = None

    def epochs(self) -> TrainingCoroutine[LearnedTask]:
        """Yield the epochs to train; return the learned task.

        Raises:
            TrainingError: Training failed.
        """
        stopwatch = Stopwatch(self.resume_from.seconds if self.resume_from else 0.0)
        train, held_out, test = views_at_best_readout(self.task)
        signature = task_signature(self.task.kind, train)
        head_start = self.task.kind.closed_form_start(train, held_out)
        plan = self.resume_from.plan if self.resume_from else self._plan(signature, head_start)
        task = self.task.with_candidate(plan.candidate)
        scratch = from_scratch(head_start, plan.subspace_deltas)
        candidates = warm_start_candidates(task, scratch, plan.neighbours, train=train, held_out=held_out)
        start, state = self._choose_start(task, scratch, candidates)

        def on_state(state: TrainingState) -> None:
            self.on_checkpoint(Checkpoint(plan, start.names, state, stopwatch.seconds))

        run = task.training_run(start, seed=self.seed)
        run = replace(run, on_step=self.on_step, on_state=on_state, resume_from=state)
        trained = yield from stopwatch.timed(run.epochs())

        view = ForwardContext(task.backbone, trained.delta, task.test)
        outputs = task.kind.outputs(view, trained.delta.head)
        routing = task.routing_statistics(trained.delta, train=train, held_out=held_out)
        frozen_outputs = task.kind.outputs(test, scratch.start.head)
        random_head = task.random_head()
        random_outputs = task.kind.outputs(test, random_head) if random_head else frozen_outputs
        scores = [
            *_curve(task, trained),
            _score(task, "oracle", outputs),
            _score(task, "frozen", frozen_outputs),
            _score(task, "random_init", random_outputs),
            *_secondary_scores(task, view, outputs),
            *_baseline_score(task),
        ]
        if best := best_neighbour(candidates):  # untrained: the forward transfer
            head = best.start_without_transferred_head.head
            scores.append(_score(task, "neighbour", _test_outputs(task, best.delta, head)))
        seconds = stopwatch.seconds
        if self.measure_gain and start is not scratch:
            run = replace(task.training_run(scratch, seed=self.seed), on_step=self.on_step)
            delta = (yield from run.epochs()).delta
            scores.append(_score(task, "scratch", _test_outputs(task, delta, delta.head)))
        opinion = opinion_from_outputs(task.kind, view, outputs, evidence=routing.evidence)
        return LearnedTask(
            task=task,
            start=start,
            scratch=scratch,
            trained=trained,
            signature=signature,
            routing=routing,
            scores=tuple(scores),
            frozen_test_features=test.frozen,
            outputs=outputs,
            opinion=opinion,
            seconds=seconds,
            search_trials=plan.search_trials,
        )

    def _plan(self, signature: Signature, head_start: HeadStart) -> TaskPlan:
        """Decide what precedes training: method and learning rate, and which learned deltas may be a start."""
        task, registry = self.task, self.registry
        candidate, trials = search_method(task, from_scratch(head_start), seed=self.seed)
        name, settings = task.data.spec.name, method_settings(candidate.method)
        previous = () if task.warm_start == "scratch" else previous_version(task.backbone, registry, task.data)
        nearest = nearest_tasks(
            task.backbone, registry, signature, task=name, labels=task.data.labels, settings=settings
        )
        basis = subspace_deltas(task.backbone, registry, settings, task=name)
        return TaskPlan(candidate, trials, basis, (*previous, *nearest))

    def _choose_start(
        self, task: PreparedTask, scratch: WarmStartCandidate, candidates: Sequence[WarmStartCandidate]
    ) -> tuple[WarmStartCandidate, TrainingState | None]:
        """The start, and the state of its training where that is resumed."""
        starts = {candidate.names: candidate for candidate in (scratch, *candidates)}
        if self.resume_from and self.resume_from.start in starts:
            return starts[self.resume_from.start], self.resume_from.training_state
        # Another machine may have averaged other candidates; then the start is chosen anew.
        start = choose_start(
            task.backbone,
            task.warm_start,
            scratch=scratch,
            candidates=candidates,
            settings=method_settings(task.method),
            trial_score=partial(trial_score, task, seed=self.seed),
        )
        return start, None


def warm_start_candidates(
    task: PreparedTask,
    scratch: WarmStartCandidate,
    neighbours: Sequence[Neighbour],
    *,
    train: ForwardContext[Any],
    held_out: ForwardContext[Any],
) -> list[WarmStartCandidate]:
    """Evaluate every neighbour as a start on the validation rows, and the average of those that help."""
    kind, settings = task.kind, method_settings(task.method)
    candidates = [
        evaluate_candidate(kind, (neighbour, 1.0), delta=neighbour.delta, rows=train, held_out=held_out)
        for neighbour in neighbours
    ]
    averaging = task.warm_start in ("merge", "auto")
    if averaging and (average := average_candidate(task.backbone, settings, scratch=scratch, candidates=candidates)):
        delta, sources = average
        candidates.append(evaluate_candidate(kind, *sources, delta=delta, rows=train, held_out=held_out))
    return candidates


def search_method(
    task: PreparedTask, scratch: WarmStartCandidate, *, seed: int
) -> tuple[SearchCandidate, tuple[SearchTrial, ...]]:
    """Search a method and learning rate for `method: auto`; a task that names its method keeps it.

    Returns:
        The candidate, and the trials of the search.
    """
    search = search_settings(task.method)
    if search is None:
        return SearchCandidate(task.method, task.budget.learning_rate), ()

    def evaluate(candidate: SearchCandidate, count: int) -> Evaluation:
        few = task.with_candidate(candidate).with_train_rows(count, seed=seed)
        best = few.training_run(scratch, seed=seed).run().best
        return Evaluation(best.score, best.validation_loss)

    candidates = search_candidates(task.backbone, search, task.budget)
    best, trials = successive_halving(candidates, len(task.data.train), evaluate, rank=task.kind.rank)
    return best, tuple(trials)


def trial_score(task: PreparedTask, start: WarmStartCandidate, *, seed: int) -> float:
    """Return the validation score of a start after one epoch of a few rows."""
    few = task.with_train_rows(TRIAL_BATCHES * task.budget.batch_size, seed=seed)
    budget = task.budget.model_copy(update={"epochs": min(task.budget.epochs, 1)})
    return replace(few, budget=budget).training_run(start, seed=seed).run().score


def _test_outputs(task: PreparedTask, delta: Delta | None, head: Head | None) -> Outputs:
    return task.kind.outputs(ForwardContext(task.backbone, delta, task.test), head)


def _score(task: PreparedTask, mode: ScoreMode, outputs: Outputs) -> Score:
    """The score of outputs for the test rows."""
    metric, answers = task.data.spec.metric, task.kind.answers(task.backbone, outputs, task.test)
    score = score_answers_with_interval(task.kind, metric, task.test, answers)
    return Score(split="test", metric=metric, mode=mode, **asdict(score))


def _secondary_scores(task: PreparedTask, view: ForwardContext[Any], outputs: Outputs) -> Iterator[Score]:
    """Yield what is measured beside the score of the test rows, without intervals.

    Resamples of an absolute error, as a calibration error is, are biased.
    """
    answers = task.kind.answers(task.backbone, outputs, task.test)
    for metric, value in secondary_scores(view, task.kind, answers).items():
        yield Score(split="test", metric=metric, mode="calibration", value=value, rows=len(answers))


def _baseline_score(task: PreparedTask) -> Iterator[Score]:
    """The score of the kind's answers without learning to the test rows, where it has any."""
    answers = task.kind.baseline_answers(task.data.train, task.test)
    if answers is not None:
        value = score_answers(task.kind, task.data.spec.metric, task.test, answers)
        yield Score(split="test", metric=BASELINE, mode="calibration", value=value, rows=len(answers))


def _curve(task: PreparedTask, trained: TrainingResult) -> Iterator[Score]:
    """The learning curve, and its best point, with an interval, as the delta's score on the validation rows.

    The validation loss is in the mode of calibration, so that a curve has one value of the validation rows per epoch.
    """
    delta, metric, rows = trained.delta, task.data.spec.metric, task.validation
    outputs = task.kind.outputs(ForwardContext(task.backbone, delta, rows), delta.head)
    best = score_answers_with_interval(task.kind, metric, rows, task.kind.answers(task.backbone, outputs, rows))
    count = best.rows
    yield Score(split="validation", metric=metric, value=trained.score, rows=count, low=best.low, high=best.high)
    for epoch in trained.curve:
        number = epoch.number
        yield Score(split="validation", metric=metric, value=epoch.score, rows=count, step=number, mode="curve")
        if isfinite(loss := epoch.validation_loss):
            yield Score(split="validation", metric=LOSS, value=loss, rows=count, step=number, mode="calibration")
        if epoch.loss is not None:
            train_rows = len(task.data.train)
            yield Score(split="train", metric=LOSS, value=epoch.loss, rows=train_rows, step=number, mode="curve")
