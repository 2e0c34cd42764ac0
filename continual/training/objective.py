"""The objective of a training: batches, the loss of a batch, and the validation score and loss of a delta."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, Head
from continual.features.tokens import Tokens, shuffled_batches
from continual.kinds import ForwardContext, Kind, PooledKind, PreparedRows
from continual.kinds.scoring import score_answers
from tasks import Budget

B = TypeVar("B")


@dataclass(frozen=True)
class PooledLoss(Generic[B]):
    """A loss that depends on texts only through pooled vectors, so that tasks can share a pass.

    Attributes:
        tokens: The tokenized texts of a batch.
        loss: The loss, a scalar in nats, of a head, the texts' pooled vectors [B, D] and the batch.
    """

    tokens: Callable[[B], Tokens]
    loss: Callable[[Head, Tensor, B], Tensor]


class Evaluation(NamedTuple):
    """A delta's result on the validation rows.

    Attributes:
        score: The score; higher is better.
        loss: The mean loss.
    """

    score: float
    loss: float


@dataclass(frozen=True)
class TrainingObjective(Generic[B]):
    """Batches and loss of a training, and the evaluation of an epoch; B is the type of a batch.

    Attributes:
        epochs: The batches of each epoch.
        rows: Rows in all epochs together.
        loss: The loss of a batch, a scalar in nats, through the delta that is attached to the backbone.
        evaluate: The validation score and loss of a delta as it would be stored.
        split_batch: The halves of a batch, each with its share of the batch's loss; empty for a single row.
        pooled_loss: The loss as a function of pooled vectors, where it is one.
        loss_inputs: The texts that an epoch reads, where all epochs read the same ones.
        checkpointing: Whether activations are recomputed in the backward pass to save memory.
    """

    epochs: Sequence[Sequence[B]]
    rows: int
    loss: Callable[[Delta, B], Tensor]
    evaluate: Callable[[Delta], Evaluation]
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
    """Build the objective of one task; a batch is a list of indices of rows of similar length.

    The batches of all epochs are drawn by `seed`.
    """
    generator = torch.Generator().manual_seed(seed)
    epochs = [shuffled_batches(kind.row_lengths(rows), budget.batch_size, generator) for _ in range(budget.epochs)]
    pooled_loss: PooledLoss[list[int]] | None = None
    if isinstance(kind, PooledKind):
        pooled_loss = PooledLoss(
            rows.tokens.take, lambda head, vectors, batch: kind.head_loss(head, vectors, rows, batch)
        )
    return TrainingObjective(
        epochs,
        len(rows.tokens) * budget.epochs,
        loss=lambda delta, batch: kind.loss(backbone, delta, rows, batch),
        evaluate=lambda delta: evaluate_delta(backbone, kind, delta, rows=validation, metric=metric),
        split_batch=partial(_halves, kind, rows),
        pooled_loss=pooled_loss,
        loss_inputs=partial(kind.loss_inputs, backbone, rows),
        checkpointing=budget.checkpointing,
    )


def evaluate_delta(backbone: Backbone, kind: Kind[Any], delta: Delta, *, rows: PreparedRows, metric: str) -> Evaluation:
    """Compute the metric of a delta's answers to `rows` and its loss on them, in one pass where the kind can."""
    outputs, loss = kind.outputs_and_loss(ForwardContext(backbone, delta, rows), delta)
    return Evaluation(score_answers(kind, metric, rows, kind.answers(backbone, outputs, rows)), loss)


def _halves(kind: Kind[Any], rows: PreparedRows, batch: list[int]) -> Sequence[tuple[list[int], float]]:
    if len(batch) < 2:
        return ()
    halves = batch[: len(batch) // 2], batch[len(batch) // 2 :]
    weights = [kind.loss_weight(rows, half) for half in halves]
    return [(half, weight / sum(weights)) for half, weight in zip(halves, weights, strict=True)]
