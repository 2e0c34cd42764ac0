"""What every strategy is: a way to learn the tasks of a stream, one after another or all at once."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self, TypeVar

import torch

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, Head, method_settings
from continual.experiments.strategies.fisher import FisherImportance
from continual.experiments.strategies.state import StrategyState
from continual.kinds import ForwardContext, kind_metadata
from continual.learning.prepared import PreparedTask
from continual.training.objective import TrainingObjective, training_objective
from continual.training.training_run import StepCallback, TrainingRun
from continual.transfer.warm_start import from_scratch, initial_delta
from tasks import Budget
from tasks.errors import InputError

B = TypeVar("B")
MAX_LEARNING_RATE = 10  # as in a stream's budget


@dataclass(frozen=True)
class StrategyContext:
    """What a strategy learns from: the tasks in order, ready for one body, by one method.

    backbone: as all of the tasks need it · budget: the stream's, for what learns all tasks at once.
    """

    backbone: Backbone
    tasks: tuple[PreparedTask, ...]
    budget: Budget
    seed: int
    report: StepCallback = lambda done, total: None


@dataclass(frozen=True)
class StrategyStep:
    """What learning brought.

    state: to go on from, its outputs still to be taken · changed: the deltas of the tasks whose answers may be others
    now, by number · before: the task's delta before its training, in the body that earlier tasks left.
    """

    state: StrategyState
    changed_deltas: Mapping[int, Delta]
    before: Delta | None = None


@dataclass(frozen=True, kw_only=True)
class Strategy(ABC):
    """A way to learn the tasks of a stream; a subclass is a frozen dataclass of its settings.

    Attributes:
        trains_jointly: Whether all tasks are learned in one step.
        full_learning_rate: The learning rate at which every weight of the backbone is trained; None for the stream's
            method, at the learning rate of each task.
    """

    trains_jointly: ClassVar[bool] = False

    full_learning_rate: float | None = None

    def __post_init__(self) -> None:
        if self.full_learning_rate is not None and not 0 < self.full_learning_rate <= MAX_LEARNING_RATE:
            raise InputError(
                f"a learning rate is above 0 and at most {MAX_LEARNING_RATE}; got {self.full_learning_rate}. "
                "Give another --full-rate"
            )

    @property
    def options(self) -> Mapping[str, str]:
        """The fields that a comparison may set, by the option's name."""
        return {} if self.full_learning_rate is None else {"full_rate": "full_learning_rate"}

    def with_options(self, options: Mapping[str, float]) -> Self:
        """Return the strategy with the values of those options that it has.

        Raises:
            InputError: A value is not allowed.
        """
        return replace(self, **{field: options[name] for name, field in self.options.items() if name in options})

    @abstractmethod
    def learn(self, given: StrategyContext, state: StrategyState, number: int) -> StrategyStep:
        """Learn the task of that number, or all of them, after those that `state` comes from."""


def starting_delta(given: StrategyContext, number: int, body: Delta | None) -> Delta:
    """The delta that learning a task begins with: the body as it is, and the head in closed form in its features.

    Without a body the method's fresh values, and the head in frozen features: as training from scratch begins.
    """
    task = given.tasks[number]
    start = task.kind.closed_form_start(
        *(ForwardContext(given.backbone, body, rows) for rows in (task.train, task.validation))
    )
    if body is not None:
        return replace(body, head=start.head, kind=kind_metadata(task.kind))
    method, settings = task.method.name, method_settings(task.method)
    return initial_delta(
        given.backbone, task.kind, from_scratch(start), method=method, settings=settings, seed=given.seed
    )


def task_objective(given: StrategyContext, number: int) -> TrainingObjective[list[int]]:
    """What a task alone teaches."""
    task = given.tasks[number]
    return training_objective(
        given.backbone,
        task.kind,
        task.train,
        validation=task.validation,
        budget=task.budget,
        metric=task.data.spec.metric,
        seed=given.seed,
    )


def fit(given: StrategyContext, start: Delta, lesson: TrainingObjective[B], *, learning_rate: float) -> Delta:
    """The delta of the lesson's best epoch, the start among them."""
    run = TrainingRun(given.backbone, start, lesson, learning_rate, given.seed, on_step=given.report)
    return run.run().delta


def shared_step(
    given: StrategyContext,
    state: StrategyState,
    start: Delta,
    body: Delta,
    heads: tuple[Head | None, ...],
    *,
    importance: FisherImportance | None = None,
    kept: int = 0,
) -> StrategyStep:
    """A step of one body for all tasks, which changes the answers of all of them wherever it has changed.

    start: what training began with · kept: bytes that are kept besides body, heads and importance.
    """
    number, own = len(heads) - 1, [head.map(torch.clone) if head else None for head in heads]
    deltas = {i: replace(body, head=head, kind=kind_metadata(given.tasks[i].kind)) for i, head in enumerate(own)}
    moved = not _equal(start.values, body.values)
    before = dict(enumerate(state.heads))
    changed = {i: delta for i, delta in deltas.items() if moved or i not in before or not _same(own[i], before[i])}
    alone = replace(body, head=None)
    rest = [tensor for head in own if head for tensor in (head.weight, head.bias)]
    after = StrategyState(
        deltas[number],
        tuple(own),
        state.outputs,
        importance,
        parameters=alone.parameter_count + sum(tensor.numel() for tensor in rest),
        size=alone.size + sum(tensor.nbytes for tensor in rest) + (importance.size if importance else 0) + kept,
    )
    return StrategyStep(after, changed, start if state.shared_delta else None)


def _equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(own, other[key]) for key, own in one.items())


def _same(one: Head | None, other: Head | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)
