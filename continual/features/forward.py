"""Batched forward passes over rows: through one delta, or through several deltas in mixed batches.

A `ForwardRequest` holds the rows of one task and the function that forwards a batch of them. Requests with the same
function can share batches, so that rows of several tasks go through the backbone together. Rows that take many passes,
as those of texts that are written, are forwarded by a `RowScheduler`, which forms batches of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, MixedBatch, attached

R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class ForwardRequest(Generic[R]):
    """Rows to forward through a backbone and a delta; R is the type of the result for all rows.

    Attributes:
        items: The input of each row, in the form that `forward` takes.
        lengths: Tokens of each row.
        forward: Computes the result of each item of a batch, through the backbone as it is at the call; or schedules
            the rows by itself. Requests with the same value can share a batch.
        gather: Combines the results of all rows.
        batch_size: Largest number of rows of a batch; not used by a scheduler.
        max_new_tokens: Largest number of tokens that a pass reads in a decoder.
    """

    items: Sequence[Any]
    lengths: Sequence[int]
    forward: "Callable[[Backbone, Sequence[Any]], Sequence[Any]] | RowScheduler"
    gather: Callable[[list[Any]], R]
    batch_size: int
    max_new_tokens: int = 0


NamedRequest = tuple[str, ForwardRequest[Any]]  # with the name of its delta
RequestRow = tuple[str, ForwardRequest[Any], int]  # name of the delta, request, and index of the row in it
MixedBatchBuilder = Callable[[Sequence[str]], tuple[Sequence[int], Delta | MixedBatch | None]]
"""From the names of the deltas of a batch's rows to the order of the rows and what to attach for them in that order.

Rows that the order leaves out are not forwarded.
"""
RowResults = Iterator[tuple[ForwardRequest[Any], int, Any]]  # request, index of the row in it, and its result


class ScheduleRows(Protocol):
    """Forwards the rows of requests in batches of its own."""

    def __call__(
        self, backbone: Backbone, requests: Sequence[NamedRequest], build_batch: MixedBatchBuilder, *, slots: int
    ) -> RowResults:
        """Yield the result of each row; a batch holds at most `slots` deltas."""


@dataclass(frozen=True)
class RowScheduler:
    """A way to forward rows other than one batch after another.

    Attributes:
        run: Forwards the rows of several requests.
    """

    run: ScheduleRows


def run_forward(backbone: Backbone, delta: Delta | None, request: ForwardRequest[R]) -> R:
    """Forward all rows of a request through a delta, or through the frozen backbone where it is None."""
    results = dict(iter_forward(backbone, delta, request))
    return request.gather([results[row] for row in range(len(results))])


def iter_forward(backbone: Backbone, delta: Delta | None, request: ForwardRequest[Any]) -> Iterator[tuple[int, Any]]:
    """Yield the index and the result of each row of a request, from the shortest rows to the longest.

    Args:
        backbone: The backbone.
        delta: The delta to attach while the iterator is open; None for the frozen backbone.
        request: The rows.
    """
    delta = delta and delta.to(backbone.device)
    if isinstance(request.forward, RowScheduler):
        for _, row, result in request.forward.run(
            backbone, [("", request)], lambda names: (range(len(names)), delta), slots=1
        ):
            yield row, result
        return
    with attached(backbone, delta):
        for _, row, result in _run_batches(backbone, [("", request)], lambda names: (range(len(names)), None)):
            yield row, result


def run_mixed_forward(
    backbone: Backbone,
    requests: Sequence[NamedRequest],
    build_batch: MixedBatchBuilder,
    *,
    slots: int,
    added_tokens: Mapping[str, int],
) -> dict[ForwardRequest[Any], Any]:
    """Forward requests of several deltas in common batches.

    Args:
        backbone: The backbone.
        requests: Requests with the same `forward` function, with the names of their deltas.
        build_batch: Builds the mixed batch for the deltas of some rows.
        slots: Largest number of deltas of a batch.
        added_tokens: Number of tokens that each delta puts before its rows.

    Returns:
        The result of each request; a request is missing if `build_batch` left out one of its rows.
    """
    results: dict[ForwardRequest[Any], dict[int, Any]] = {request: {} for _, request in requests}
    forward = requests[0][1].forward
    if isinstance(forward, RowScheduler):
        rows = forward.run(backbone, requests, build_batch, slots=slots)
    else:
        rows = _run_batches(backbone, requests, build_batch, slots=slots, added_tokens=added_tokens)
    for request, row, result in rows:
        results[request][row] = result
    return {
        request: request.gather([by_row[row] for row in range(len(by_row))])
        for request, by_row in results.items()
        if len(by_row) == len(request.items)
    }


@torch.inference_mode()
def _run_batches(
    backbone: Backbone,
    requests: Sequence[NamedRequest],
    build_batch: MixedBatchBuilder,
    *,
    slots: int = 1,
    added_tokens: Mapping[str, int] | None = None,
) -> RowResults:
    """Yield request, row index and result of each row."""
    for batch in _batches(backbone, requests, added_tokens or {"": 0}, slots=slots):
        order, mixed_batch = build_batch([name for name, _, _ in batch])
        rows = [batch[i] for i in order]
        if rows:
            forward = rows[0][1].forward
            assert not isinstance(forward, RowScheduler)
            with attached(backbone, mixed_batch):
                results = forward(backbone, [request.items[row] for _, request, row in rows])
            yield from ((request, row, result) for (_, request, row), result in zip(rows, results, strict=True))


def _batches(
    backbone: Backbone, requests: Sequence[NamedRequest], added_tokens: Mapping[str, int], *, slots: int
) -> Iterator[list[RequestRow]]:
    """Yield batches of rows of similar length, of at most `slots` deltas, within the positions.

    The tokens that a delta puts before its rows, and those that are written, lengthen all rows of a batch.
    """
    rows = [(name, request, row) for name, request in requests for row in range(len(request.items))]
    batch: list[RequestRow] = []
    names: set[str] = set()
    new_tokens = 0
    for name, request, row in sorted(rows, key=lambda entry: entry[1].lengths[entry[2]]):
        names, new_tokens, length = names | {name}, max(new_tokens, request.max_new_tokens), request.lengths[row]
        width = length + new_tokens if backbone.architecture == "causal" else max(length, new_tokens)
        too_wide = width + max(added_tokens[name] for name in names) > backbone.longest_input
        if batch and (len(batch) == request.batch_size or len(names) > slots or too_wide):
            yield batch
            batch, names, new_tokens = [], {name}, request.max_new_tokens
        batch.append((name, request, row))
    if batch:
        yield batch
