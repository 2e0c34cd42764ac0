"""The base class of strategies, which learn a stream's tasks one after another or all at once."""

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
from continual.training.training_run import StepCallback, TrainingResult, TrainingRun
from continual.transfer.warm_start import from_scratch, initial_delta
from tasks import Budget
from tasks.errors import InputError

B = TypeVar("B")
MAX_LEARNING_RATE = 10  # as in a stream's budget


@dataclass(frozen=True)
class StrategyContext:
    """The tasks that a strategy learns, all prepared for one backbone and one method.

    Attributes:
        backbone: The backbone with the edits that any of the tasks needs.
        tasks: The tasks in the stream's order.
        budget: The stream's budget, for strategies that learn all tasks at once.
        seed: The stream's seed.
        on_step: Called with the training steps done and the steps in all.
    """

    backbone: Backbone
    tasks: tuple[PreparedTask, ...]
    budget: Budget
    seed: int
    on_step: StepCallback = lambda done, total: None


@dataclass(frozen=True)
class StrategyStep:
    """The result of learning a task.

    Attributes:
        state: The state after it, with the outputs from before; `outputs_of_test_rows` computes the new ones.
        changed_deltas: The deltas of the tasks whose answers may have changed, by the task's number.
        best_epoch: The epoch whose delta is the result; 0 is the start.
        before: The task's delta before its training, on the values that earlier tasks trained; None where there are
            none.
    """

    state: StrategyState
    changed_deltas: Mapping[int, Delta]
    best_epoch: int
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
    def learn(self, context: StrategyContext, state: StrategyState, number: int) -> StrategyStep:
        """Learn a task, or all of them.

        Args:
            context: All tasks of the stream.
            state: The state after the tasks before.
            number: The index of the task to learn; the last one for a strategy that learns all at once.
        """


def starting_delta(context: StrategyContext, number: int, body: Delta | None) -> Delta:
    """Return the delta from which a task is trained: the body's values and a closed-form head.

    Args:
        context: The tasks.
        number: The index of the task.
        body: The delta whose values are continued; None for the method's initial values, with the closed-form head in
            frozen features, as in training from scratch.
    """
    task = context.tasks[number]
    start = task.kind.closed_form_start(
        *(ForwardContext(context.backbone, body, rows) for rows in (task.train, task.validation))
    )
    if body is not None:
        return replace(body, head=start.head, kind=kind_metadata(task.kind))
    method, settings = task.method.name, method_settings(task.method)
    return initial_delta(
        context.backbone, task.kind, from_scratch(start), method=method, settings=settings, seed=context.seed
    )


def task_objective(context: StrategyContext, number: int) -> TrainingObjective[list[int]]:
    """Return the objective of one task on its own rows."""
    task = context.tasks[number]
    return training_objective(
        context.backbone,
        task.kind,
        task.train,
        validation=task.validation,
        budget=task.budget,
        metric=task.data.spec.metric,
        seed=context.seed,
    )


def fit(
    context: StrategyContext, start: Delta, objective: TrainingObjective[B], *, learning_rate: float
) -> TrainingResult:
    """Train a copy of `start`; the result has the delta of the best epoch, `start` itself being epoch 0."""
    run = TrainingRun(context.backbone, start, objective, learning_rate, context.seed, on_step=context.on_step)
    return run.run()


def shared_step(
    context: StrategyContext,
    state: StrategyState,
    start: Delta,
    trained: TrainingResult,
    heads: tuple[Head | None, ...],
    *,
    importance: FisherImportance | None = None,
    extra_bytes: int = 0,
) -> StrategyStep:
    """Return the step of a strategy whose tasks share one delta.

    A task's answers change where the shared values or the task's head have changed.

    Args:
        context: The tasks.
        state: The state before the step.
        start: The delta from which training started.
        trained: The result of training; the head of its delta is ignored.
        heads: The heads of the tasks learned so far, the new one last.
        importance: The importance of the weights to these tasks, where the strategy measures it.
        extra_bytes: The bytes that the strategy stores besides values, heads and importance.
    """
    body, number, copies = trained.delta, len(heads) - 1, [head.map(torch.clone) if head else None for head in heads]
    deltas = {i: replace(body, head=head, kind=kind_metadata(context.tasks[i].kind)) for i, head in enumerate(copies)}
    values_changed = not _equal_values(start.values, body.values)
    before = dict(enumerate(state.heads))
    changed = {
        i: delta
        for i, delta in deltas.items()
        if values_changed or i not in before or not _equal_heads(copies[i], before[i])
    }
    headless = replace(body, head=None)
    head_tensors = [tensor for head in copies if head for tensor in (head.weight, head.bias)]
    stored_bytes = headless.size + sum(tensor.nbytes for tensor in head_tensors)
    after = StrategyState(
        deltas[number],
        tuple(copies),
        state.outputs,
        importance,
        parameters=headless.parameter_count + sum(tensor.numel() for tensor in head_tensors),
        size=stored_bytes + (importance.size if importance else 0) + extra_bytes,
    )
    return StrategyStep(after, changed, trained.best.number, start if state.shared_delta else None)


def _equal_values(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, b[key]) for key, tensor in a.items())


def _equal_heads(a: Head | None, b: Head | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)
