"""A task whose rows are tokenized for a backbone and whose settings are resolved."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from continual.backbones.backbone import Backbone
from continual.deltas import Delta
from continual.features.tokens import reserve_tokens
from continual.inference.task_statistics import compute_routing_statistics
from continual.kinds import ForwardContext, Kind, PreparedRows, backbone_for, kind_of
from continual.routing import RoutingStatistics
from continual.training.method_search import SearchCandidate, candidate_settings
from tasks import Budget, Method, TaskData, WarmStart


@dataclass(frozen=True)
class PreparedTask:
    """A task whose rows are ready for the backbone, and how it is to be learned.

    backbone: as the task's kind needs it.
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
        """Its train, validation and test rows through the frozen backbone."""
        train, validation, test = (
            ForwardContext(self.backbone, None, rows) for rows in (self.train, self.validation, self.test)
        )
        return train, validation, test

    def routing_statistics(
        self, delta: Delta | None, *, train: ForwardContext[Any], held_out: ForwardContext[Any]
    ) -> RoutingStatistics:
        """What a router needs to know of it, of its rows as `seen` and of some of them through its delta, if any."""
        length = self.budget.max_length
        return compute_routing_statistics(
            self.kind, self.data, delta, train=train, held_out=held_out, max_length=length
        )

    def with_candidate(self, arm: SearchCandidate) -> "PreparedTask":
        """The task as it is learned by this method at this learning rate."""
        budget = self.budget.model_copy(update={"learning_rate": arm.learning_rate})
        return replace(self, method=arm.method, budget=budget)


def prepare_task(backbone: Backbone, data: TaskData) -> PreparedTask:
    """Tokenize the rows of a task whose spec has been filled in from its stream."""
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
