"""Compute and store a task's routing statistics: sums and a few feature vectors, never a text."""

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

MAX_EVIDENCE_ROWS = 1024  # train rows that are forwarded through a delta for its fit statistics
PROBABILISTIC_KIND = "classification"  # the metric kind whose answers' probabilities are evidence of their task


def task_signature(kind: Kind[Any], train: ForwardContext[Any]) -> Signature:
    """Compute a task's signature from its train rows through the frozen backbone."""
    classes, count = kind.signature_classes(train.rows)
    return compute_signature(train.frozen.pooled, classes, count=count)


def compute_routing_statistics(
    kind: Kind[Any],
    data: TaskData,
    delta: Delta | None,
    *,
    train: ForwardContext[Any],
    held_out: ForwardContext[Any],
    max_length: int,
) -> RoutingStatistics:
    """Compute a task's routing statistics.

    Some validation rows are held out, to choose a router's settings on; the others count like train rows.

    Args:
        kind: The task's kind.
        data: The task's rows.
        delta: The task's delta, for the fit statistics; None where there is none that was trained here.
        train: Train rows through the frozen backbone.
        held_out: Validation rows through the frozen backbone.
        max_length: Tokens that a text is truncated to.

    Returns:
        The statistics.
    """
    classes, count = kind.signature_classes(train.rows)
    held_out_indices = evenly_spaced(len(data.validation))
    extra_indices = sorted(set(range(len(data.validation))) - set(held_out_indices))
    evidence_train, evidence_held_out = (
        kind.prepare(train.backbone, rows, max_length=max_length)
        for rows in (data.train.select(_stratified(classes)), data.validation.select(held_out_indices))
    )
    return compute_statistics(
        torch.cat([train.frozen.random_features, held_out.frozen.random_features[extra_indices]]),
        torch.cat([classes, kind.signature_classes(held_out.rows)[0][extra_indices]]),
        count=count,
        held_out=held_out.frozen.take(held_out_indices),
        evidence=_evidence(
            kind, *(ForwardContext(train.backbone, delta, rows) for rows in (evidence_train, evidence_held_out))
        )
        if delta
        else None,
    )


def store_signature(
    blobs: BlobStore, backbone: Backbone, signature: Signature, routing: RoutingStatistics
) -> SignatureRecord:
    """Store a task's signature and routing statistics as blobs, and return the record that names them."""
    return SignatureRecord(
        digest=blobs.put(signature.to_bytes()),
        rows=signature.rows,
        pooling=backbone.pooling,
        routing=blobs.put(routing.to_bytes()),
    )


def _evidence(kind: Kind[Any], rows: ForwardContext[Any], held_out: ForwardContext[Any]) -> FitStatistics:
    assert held_out.delta is not None
    log_probs = torch.zeros(0)
    if kind.metric_kind == PROBABILISTIC_KIND:
        outputs = kind.outputs(held_out, held_out.delta.head)
        log_probs = answer_log_probabilities(kind.answers(held_out.backbone, outputs, held_out.rows))
    classes, count = kind.signature_classes(rows.rows)
    return fit_statistics(rows.vectors, classes, count=count, held_out=held_out.vectors, log_probs=log_probs)


def answer_log_probabilities(answers: Sequence[Answer]) -> Tensor:
    """Return the log-probabilities [N] of N answers, in nats."""
    return torch.tensor([answer.score or 0.0 for answer in answers]).clamp_min(torch.finfo().tiny).log()


def _stratified(classes: Tensor) -> list[int]:
    """Return the indices of the first rows of each class [N], at least one, MAX_EVIDENCE_ROWS in all."""
    max_rows = max(MAX_EVIDENCE_ROWS // int(classes.max() + 1), 1)
    order = torch.argsort(classes, stable=True)
    sizes = torch.bincount(classes)
    rank = torch.arange(len(classes)) - torch.repeat_interleave(torch.cumsum(sizes, 0) - sizes, sizes)
    return sorted(order[rank < max_rows].tolist())
