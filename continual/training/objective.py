"""What a delta learns from: batches, what is lost on one of them, and how well a delta does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, Head
from continual.features.tokens import Tokens, shuffled_batches
from continual.kinds import ForwardContext, Kind, PooledKind, PreparedRows, answer_labels
from continual.metrics import metric_score
from tasks import Budget

B = TypeVar("B")


@dataclass(frozen=True)
class PooledLoss(Generic[B]):
    """How the loss of a batch follows from its texts' pooled vectors. tokens: the texts · loss: given [B, D]."""

    tokens: Callable[[B], Tokens]
    loss: Callable[[Head, Tensor, B], Tensor]


@dataclass(frozen=True)
class TrainingObjective(Generic[B]):
    """What a delta learns from.

    epochs: the batches of each, of `rows` rows in all · loss: of a batch through the delta that is attached, in nats ·
    score: of a delta as it would be kept, on validation rows · halves: a batch in two, with the share of its loss that
    each has, nothing where it has one row · from_vectors: where the loss follows from its texts' vectors · reads: what
    the backbone reads in an epoch, where that is the same in all · checkpointing: whether layers are computed twice to
    keep less of them for the gradient.
    """

    epochs: Sequence[Sequence[B]]
    rows: int
    loss: Callable[[Delta, B], Tensor]
    score: Callable[[Delta], float]
    split_batch: Callable[[B], Sequence[tuple[B, float]]] = lambda batch: ()
    pooled_loss: PooledLoss[B] | None = None
    loss_inputs: Callable[[], Tokens] | None = None
    checkpointing: bool = False


def training_objective(
    backbone: Backbone,
    kind: Kind[Any],
    rows: PreparedRows,
    *,
    validation: PreparedRows,
    budget: Budget,
    metric: str,
    seed: int,
) -> TrainingObjective[list[int]]:
    """The rows of one task, in batches of like length that the seed draws."""
    generator = torch.Generator().manual_seed(seed)
    epochs = [shuffled_batches(rows.tokens.lengths, budget.batch_size, generator) for _ in range(budget.epochs)]
    from_vectors: PooledLoss[list[int]] | None = None
    if isinstance(kind, PooledKind):
        from_vectors = PooledLoss(
            rows.tokens.take, lambda head, vectors, batch: kind.loss_of(head, vectors, rows, batch)
        )
    return TrainingObjective(
        epochs,
        len(rows.tokens) * budget.epochs,
        loss=lambda delta, batch: kind.loss(backbone, delta, rows, batch),
        score=lambda delta: validation_score(backbone, kind, delta, rows=validation, metric=metric),
        split_batch=partial(_halves, kind, rows),
        pooled_loss=from_vectors,
        loss_inputs=partial(kind.loss_inputs, backbone, rows),
        checkpointing=budget.checkpointing,
    )


def _halves(kind: Kind[Any], rows: PreparedRows, batch: list[int]) -> Sequence[tuple[list[int], float]]:
    if len(batch) < 2:
        return ()
    parts = batch[: len(batch) // 2], batch[len(batch) // 2 :]
    weights = [kind.loss_weight(rows, part) for part in parts]
    return [(part, weight / sum(weights)) for part, weight in zip(parts, weights, strict=True)]


def validation_score(backbone: Backbone, kind: Kind[Any], delta: Delta, *, rows: PreparedRows, metric: str) -> float:
    """The metric of what a delta answers to rows."""
    outputs = kind.outputs(ForwardContext(backbone, delta, rows), delta.head)
    answers = answer_labels(kind.answers(backbone, outputs, rows))
    return metric_score(metric, rows.truth, answers, kind=kind.metric_kind)
