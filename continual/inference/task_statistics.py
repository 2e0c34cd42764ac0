"""What is kept of a task so that inputs find their way to it: sums and a few features of its rows, never a text."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import Delta
from continual.features.signature import Signature, compute_signature
from continual.kinds import Answer, ForwardContext, Kind
from continual.routing import FitStatistics, RoutingStatistics, compute_statistics, evenly_spaced, fit_statistics
from registry import BlobStore, SignatureRecord
from tasks import TaskData

MAX_EVIDENCE_ROWS = 1024  # train rows that are read through a delta to know what fits it
PROBABILISTIC_KIND = (
    "classification"  # the kind whose answers have probabilities that say how sure a delta is of its task
)


def task_signature(kind: Kind[Any], train: ForwardContext[Any]) -> Signature:
    """A task's signature, from its train rows through the frozen backbone."""
    classes, count = kind.signature_classes(train.rows)
    return compute_signature(train.vectors, classes, count=count)


def compute_routing_statistics(
    kind: Kind[Any],
    data: TaskData,
    delta: Delta | None,
    *,
    train: ForwardContext[Any],
    held_out: ForwardContext[Any],
    max_length: int,
) -> RoutingStatistics:
    """A task's routing statistics: its rows through the frozen backbone, and some of them through its delta if any.

    Of the validation rows some are kept to choose a router's settings on; the others count like train rows.
    """
    classes, count = kind.signature_classes(train.rows)
    kept = evenly_spaced(len(data.validation))
    others = sorted(set(range(len(data.validation))) - set(kept))
    few, few_kept = (
        kind.prepare(train.backbone, rows, max_length=max_length)
        for rows in (data.train.select(_of_each(classes)), data.validation.select(kept))
    )
    return compute_statistics(
        torch.cat([train.frozen.random_features, held_out.frozen.random_features[others]]),
        torch.cat([classes, kind.signature_classes(held_out.rows)[0][others]]),
        count=count,
        held_out=held_out.frozen.take(kept),
        evidence=_evidence(kind, *(ForwardContext(train.backbone, delta, rows) for rows in (few, few_kept)))
        if delta
        else None,
    )


def store_signature(
    blobs: BlobStore, backbone: Backbone, own: Signature, routing: RoutingStatistics
) -> SignatureRecord:
    """Both, stored as blobs."""
    return SignatureRecord(
        digest=blobs.put(own.to_bytes()),
        rows=own.rows,
        pooling=backbone.pooling,
        routing=blobs.put(routing.to_bytes()),
    )


def _evidence(kind: Kind[Any], rows: ForwardContext[Any], held_out: ForwardContext[Any]) -> FitStatistics:
    assert held_out.delta is not None
    sure = torch.zeros(0)
    if kind.metric_kind == PROBABILISTIC_KIND:
        outputs = kind.outputs(held_out, held_out.delta.head)
        answers = kind.answers(held_out.backbone, outputs, held_out.rows)
        sure = answer_log_probabilities(answers)
    classes, count = kind.signature_classes(rows.rows)
    return fit_statistics(rows.vectors, classes, count=count, held_out=held_out.vectors, log_probs=sure)


def answer_log_probabilities(answers: Sequence[Answer]) -> Tensor:
    """The logarithms [N] of the probabilities of answers, in nats."""
    return torch.tensor([answer.score or 0.0 for answer in answers]).clamp_min(torch.finfo().tiny).log()


def _of_each(classes: Tensor) -> list[int]:
    """The numbers of at most so many rows, as many of each class as there are; at least one of each."""
    most = max(MAX_EVIDENCE_ROWS // int(classes.max() + 1), 1)
    order = torch.argsort(classes, stable=True)
    sizes = torch.bincount(classes)
    place = torch.arange(len(classes)) - torch.repeat_interleave(torch.cumsum(sizes, 0) - sizes, sizes)
    return sorted(order[place < most].tolist())
