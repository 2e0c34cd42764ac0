"""The story of one task: from its rows to a delta that the registry remembers.

rows → signature in frozen features → the method, where it is to be chosen → neighbours ranked → a start chosen on
held-out rows, or what the task learned before → training → scores. Nothing is written here: `record` writes all of it
in one unit of work, so a task that fails, or is killed, leaves no trace but a checkpoint to go on from.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from continual.deltas import method_settings
from continual.features.random_features import FrozenFeatures
from continual.features.signature import Signature
from continual.inference.opinions import opinion_from_outputs
from continual.inference.task_statistics import task_signature
from continual.kinds import (
    Answer,
    ForwardContext,
    HeadStart,
    Outputs,
    answer_labels,
)
from continual.learning.checkpoint import Checkpoint, TaskPlan
from continual.learning.prepared import PreparedTask
from continual.metrics import score_with_interval
from continual.routing import Opinion, RoutingStatistics
from continual.training.loop import StateCallback, StepCallback, Training, TrainingResult, training_steps
from continual.training.method_search import (
    SearchCandidate,
    SearchTrial,
    search_candidates,
    search_settings,
    successive_halving,
)
from continual.training.objective import training_objective
from continual.training.state import TrainingState
from continual.training.steps import Stopwatch, TrainingCoroutine, run_training
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
    initial_delta,
)
from registry import Registry, Score, ScoreMode
from tasks.rows import sample


@dataclass(frozen=True)
class LearnedTask:
    """All that learning a task brought.

    own: the task's signature in frozen features · routing: what a router needs to know of it · tested: its test rows
    through the frozen backbone · outputs, opinion: what the delta says of them · seconds: all but what `measure_gain`
    adds · tried: by a method search.
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


def learn_task_coroutine(
    registry: Registry,
    task: PreparedTask,
    *,
    seed: int,
    measure_gain: bool = False,
    report: StepCallback = lambda done, total: None,
    checkpoint: Checkpoint | None = None,
    keep: Callable[[Checkpoint], None] = lambda checkpoint: None,
) -> TrainingCoroutine[LearnedTask]:
    """The stints in which one task is learned on top of what the registry holds, and what it came to.

    measure_gain: where a warm start was taken, train from scratch as well, and keep that score beside the delta's own ·
    keep: is shown how far learning has come, before the first epoch and after each · checkpoint: go on from there.

    Raises LearnError when training fails.
    """
    clock = Stopwatch(checkpoint.seconds if checkpoint else 0.0)
    backbone, kind = task.backbone, task.kind
    rows, held_out, tested = task.frozen_views
    own = task_signature(kind, rows)
    begin = kind.closed_form_start(rows, held_out)
    plan = checkpoint.plan if checkpoint else plan_task(registry, task, own, begin, seed=seed)
    task = task.with_candidate(plan.candidate)
    settings, scratch = method_settings(task.method), from_scratch(begin, plan.subspace_deltas)
    others = warm_start_candidates(task, scratch, plan.neighbours, rows=rows, held_out=held_out)
    starts = {candidate.names: candidate for candidate in (scratch, *others)}
    if checkpoint and checkpoint.start in starts:
        start, course = starts[checkpoint.start], checkpoint.training_state
    else:  # an average may be another one on another machine
        tried, course = partial(trial_score, task, seed=seed), None
        start = choose_start(backbone, task.warm_start, scratch=scratch, others=others, settings=settings, tried=tried)

    def reached(course: TrainingState) -> None:
        keep(Checkpoint(plan, start.names, course, clock.seconds))

    trained = yield from clock.timed(
        training_from_start(task, start, seed=seed, report=report, course=course, keep=reached)
    )

    told = ForwardContext(backbone, trained.delta, task.test)
    outputs = kind.outputs(told, trained.delta.head)
    routing = task.routing_statistics(trained.delta, train=rows, held_out=held_out)
    scores = [
        *_curve(task, trained),
        _score(task, "oracle", outputs),
        _score(task, "frozen", kind.outputs(tested, scratch.start.head)),
    ]
    if best := best_neighbour(others):  # without training: the forward transfer
        scores.append(
            _score(
                task,
                "neighbour",
                kind.outputs(ForwardContext(backbone, best.delta, task.test), best.start_without_transferred_head.head),
            )
        )
    seconds = clock.seconds
    if measure_gain and start is not scratch:
        alone = (yield from training_from_start(task, scratch, seed=seed, report=report)).delta
        scores.append(_score(task, "scratch", kind.outputs(ForwardContext(backbone, alone, task.test), alone.head)))
    opinion = opinion_from_outputs(kind, told, outputs, evidence=routing.evidence)
    return LearnedTask(
        task,
        start,
        scratch,
        trained,
        own,
        routing,
        tuple(scores),
        tested.frozen,
        outputs,
        opinion,
        seconds,
        plan.search_trials,
    )


def plan_task(registry: Registry, task: PreparedTask, own: Signature, begin: HeadStart, *, seed: int) -> TaskPlan:
    """What is decided before a task is trained: method and learning rate, and which learned deltas it looks at."""
    best, tried = search_method(task, from_scratch(begin), seed=seed)
    name, settings = task.data.spec.name, method_settings(best.method)
    before = () if task.warm_start == "scratch" else previous_version(task.backbone, registry, task.data)
    near = nearest_tasks(task.backbone, registry, own, task=name, labels=task.data.labels, settings=settings)
    return TaskPlan(best, tried, subspace_deltas(task.backbone, registry, settings, task=name), (*before, *near))


def warm_start_candidates(
    task: PreparedTask,
    scratch: WarmStartCandidate,
    neighbours: Sequence[Neighbour],
    *,
    rows: ForwardContext[Any],
    held_out: ForwardContext[Any],
) -> list[WarmStartCandidate]:
    """Every neighbour as a start, and the average of those that are of use."""
    kind, settings = task.kind, method_settings(task.method)
    found = [
        evaluate_candidate(kind, (near, 1.0), delta=near.delta, rows=rows, held_out=held_out) for near in neighbours
    ]
    averaging = task.warm_start in ("merge", "auto")
    if averaging and (mixed := average_candidate(task.backbone, settings, scratch=scratch, others=found)):
        delta, sources = mixed
        found.append(evaluate_candidate(kind, *sources, delta=delta, rows=rows, held_out=held_out))
    return found


def search_method(
    task: PreparedTask, scratch: WarmStartCandidate, *, seed: int
) -> tuple[SearchCandidate, tuple[SearchTrial, ...]]:
    """The method and learning rate that a search finds for a task, and what was tried.

    A task that names its method keeps what it says.
    """
    search = search_settings(task.method)
    if search is None:
        return SearchCandidate(task.method, task.budget.learning_rate), ()

    def score(arm: SearchCandidate, count: int) -> float:
        return train_from_start(_on_few(task.with_candidate(arm), count, seed=seed), scratch, seed=seed).score

    best, tried = successive_halving(search_candidates(task.backbone, search, task.budget), len(task.data.train), score)
    return best, tuple(tried)


def _on_few(task: PreparedTask, count: int, *, seed: int) -> PreparedTask:
    """The task with so many of its train rows."""
    few = sample(task.data.train, max(count, len(task.data.labels)), seed=seed, keep_labels=True)
    return replace(task, train=task.kind.prepare(task.backbone, few, max_length=task.budget.max_length))


def trial_score(task: PreparedTask, start: WarmStartCandidate, *, seed: int) -> float:
    """The score on held-out rows after one epoch of a few rows."""
    few = _on_few(task, TRIAL_BATCHES * task.budget.batch_size, seed=seed)
    budget = task.budget.model_copy(update={"epochs": min(task.budget.epochs, 1)})
    return train_from_start(replace(few, budget=budget), start, seed=seed).score


def train_from_start(
    task: PreparedTask, start: WarmStartCandidate, *, seed: int, keep: StateCallback = lambda course: None
) -> TrainingResult:
    """Train the task's method within its budget from a start, by itself."""
    return run_training(training_from_start(task, start, seed=seed, keep=keep), seed=seed)


def training_from_start(
    task: PreparedTask,
    start: WarmStartCandidate,
    *,
    seed: int,
    report: StepCallback = lambda done, total: None,
    course: TrainingState | None = None,
    keep: StateCallback = lambda course: None,
) -> Training:
    """The stints of that, or of going on with it from where it was kept."""
    method, settings = task.method.name, method_settings(task.method)
    delta = initial_delta(task.backbone, task.kind, start, method=method, settings=settings, seed=seed)
    lesson = training_objective(
        task.backbone,
        task.kind,
        task.train,
        validation=task.validation,
        budget=task.budget,
        metric=task.data.spec.metric,
        seed=seed,
    )
    rate = task.budget.learning_rate
    return training_steps(task.backbone, delta, lesson, learning_rate=rate, report=report, course=course, keep=keep)


def _score(task: PreparedTask, mode: ScoreMode, outputs: Outputs) -> Score:
    """The score of what was said of the test rows."""
    metric, answers = task.data.spec.metric, task.kind.answers(task.backbone, outputs, task.test)
    found = score_with_interval(metric, task.test.truth, answer_labels(answers), kind=task.kind.metric_kind)
    return Score(split="test", metric=metric, mode=mode, **asdict(found))


def _curve(task: PreparedTask, trained: TrainingResult) -> Iterator[Score]:
    """The learning curve, and its best point as the delta's own score on the validation rows."""
    metric, rows, seen = task.data.spec.metric, len(task.data.validation), len(task.data.train)
    yield Score(split="validation", metric=metric, value=trained.score, rows=rows)
    for epoch in trained.curve:
        yield Score(split="validation", metric=metric, value=epoch.score, rows=rows, step=epoch.number, mode="curve")
        if epoch.loss is not None:
            yield Score(split="train", metric="loss", value=epoch.loss, rows=seen, step=epoch.number, mode="curve")
