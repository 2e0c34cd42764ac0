"""A task whose rows are tokenized for a backbone and whose settings are resolved."""

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from statistics import median_low
from typing import Any

import torch

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, Head, method_settings
from continual.features.tokens import reserve_tokens
from continual.inference.task_statistics import compute_routing_statistics
from continual.kinds import ForwardContext, Kind, PreparedRows, backbone_for, kind_of, kind_of_delta
from continual.routing import RoutingStatistics
from continual.training.method_search import SearchCandidate, candidate_settings
from continual.training.objective import training_objective
from continual.training.training_run import TrainingRun
from continual.transfer.warm_start import WarmStartCandidate, initial_delta
from tasks import Budget, Method, TaskData, WarmStart
from tasks.data_quality import share_of_rows
from tasks.rows import sample

RANDOM_HEAD_DEVIATION = 0.02  # of a new classifier's weights in transformers: `initializer_range`


@dataclass(frozen=True)
class PreparedTask:
    """A task whose rows are tokenized for a backbone, and the settings by which it is learned.

    Attributes:
        backbone: The backbone as the task's kind needs it (`backbone_for`).
        data: The spec and the rows.
        kind: The task kind: loss, outputs, answers.
        train: The tokenized train rows.
        validation: The tokenized validation rows.
        test: The tokenized test rows.
        method: The method; `auto` for a search.
        warm_start: How the start is chosen.
        budget: Epochs, batch size, learning rate, length.
    """

    backbone: Backbone
    data: TaskData
    kind: Kind[Any]
    train: PreparedRows
    validation: PreparedRows
    test: PreparedRows
    method: Method
    warm_start: WarmStart
    budget: Budget

    @property
    def frozen_views(self) -> tuple[ForwardContext[Any], ForwardContext[Any], ForwardContext[Any]]:
        """The train, validation and test rows through the frozen backbone."""
        train, validation, test = (
            ForwardContext(self.backbone, None, rows) for rows in (self.train, self.validation, self.test)
        )
        return train, validation, test

    def routing_statistics(
        self, delta: Delta | None, *, train: ForwardContext[Any], held_out: ForwardContext[Any]
    ) -> RoutingStatistics:
        """Compute the statistics that a router needs of the task.

        Args:
            delta: The task's delta, whose fit to some of the rows is measured too; None leaves that out.
            train: The train rows through the frozen backbone.
            held_out: The validation rows through the frozen backbone.
        """
        length = self.budget.max_length
        return compute_routing_statistics(
            self.kind, self.data, delta, train=train, held_out=held_out, max_length=length
        )

    def random_head(self) -> Head | None:
        """Return a head at random initialisation: weights of N(0, 0.02²), no bias; None for a kind without heads.

        It is drawn by the seed of the rows and the task's name, so that all strategies share it.
        """
        head = self.kind.zero_head(self.backbone)
        if head is None:
            return None
        digest = hashlib.sha256(f"{self.data.seed}/{self.data.spec.name}/head".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
        return replace(head, weight=torch.randn(head.weight.shape, generator=generator) * RANDOM_HEAD_DEVIATION)

    def with_fitted_kind(self) -> "PreparedTask":
        """Return the task with what its kind takes from the train rows through the frozen backbone."""
        return replace(self, kind=self.kind.fit_frozen(ForwardContext(self.backbone, None, self.train)))

    def with_kind_of(self, delta: Delta) -> "PreparedTask":
        """Return the task with its kind as a delta was learned for it."""
        return replace(self, kind=kind_of_delta(delta))

    def with_candidate(self, candidate: SearchCandidate) -> "PreparedTask":
        """Return the task with a candidate's method and learning rate."""
        budget = self.budget.model_copy(update={"learning_rate": candidate.learning_rate})
        return replace(self, method=candidate.method, budget=budget)

    def with_train_rows(self, count: int, *, seed: int) -> "PreparedTask":
        """Return the task with a sample of `count` train rows, at least one per label."""
        rows = sample(self.data.train, max(count, len(self.data.labels)), seed=seed, keep_labels=True)
        return replace(self, train=self.kind.prepare(self.backbone, rows, max_length=self.budget.max_length))

    def with_truncation_warning(self) -> "PreparedTask":
        """Return the task with a warning among those of its data where rows are longer than what is read of them."""
        parts = ((self.data.train, self.train), (self.data.validation, self.validation), (self.data.test, self.test))
        cut = [
            count
            for rows, prepared in parts
            for count in self.kind.truncated_counts(self.backbone, rows, prepared, max_length=self.budget.max_length)
        ]
        truncated = sorted(count for count in cut if count)
        if not truncated:
            return self
        warning = (
            f"{share_of_rows(len(truncated), len(cut))} are longer than what is read of them: {median_low(truncated)} "
            f"tokens of such a row are cut off in the median, {truncated[-1]} at most; raise {self._length_limits}; "
            f"the backbone takes {self.backbone.longest_input}) or shorten them"
        )
        return replace(self, data=replace(self.data, warnings=(*self.data.warnings, warning)))

    @property
    def _length_limits(self) -> str:
        """The keys that limit what is read of a row, and their values."""
        length, prompt, answer = self.budget.max_length, self.budget.max_prompt, self.budget.max_new_tokens
        if self.data.spec.kind != "generation":
            return f"budget.max_length (now {length}"
        return f"budget.max_prompt or max_new_tokens (now {prompt or length} and {answer or length}"

    def training_run(self, start: WarmStartCandidate, *, seed: int) -> TrainingRun[list[int]]:
        """Return the training of the task's method from a start, within the budget."""
        settings = method_settings(self.method)
        delta = initial_delta(self.backbone, self.kind, start, method=self.method.name, settings=settings, seed=seed)
        objective = training_objective(
            self.backbone,
            self.kind,
            self.train,
            validation=self.validation,
            budget=self.budget,
            metric=self.data.spec.metric,
            seed=seed,
        )
        return TrainingRun(self.backbone, delta, objective, learning_rate=self.budget.learning_rate, seed=seed)


def prepare_task(backbone: Backbone, data: TaskData) -> PreparedTask:
    """Tokenize the rows of a task whose spec has been completed from its stream (`Stream.resolved`).

    Raises:
        MethodError: The method does not exist, or leaves too few tokens for a text.
        ValueError: The spec lacks a method, a warm start or a budget.
    """
    spec = data.spec
    if not (spec.method and spec.warm_start and spec.budget):
        raise ValueError(f"task {spec.name!r} lacks a method, warm start or budget; take it from Stream.resolved()")
    backbone = reserve_tokens(backbone, *candidate_settings(spec.method))
    kind = kind_of(backbone, data)
    prepare = partial(kind.prepare, backbone, max_length=spec.budget.max_length)
    return PreparedTask(
        backbone_for(backbone, kind),
        data,
        kind,
        train=prepare(data.train),
        validation=prepare(data.validation),
        test=prepare(data.test),
        method=spec.method,
        warm_start=spec.warm_start,
        budget=spec.budget,
    )
