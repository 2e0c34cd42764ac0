"""What is read of the rows of tasks, and the passes that do it: through one delta, or through many at once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, MixedBatch, attached

R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class ForwardRequest(Generic[R]):
    """Rows that a backbone is to read through a delta.

    items: what is known of each row · lengths: tokens of each · read: what one pass through whatever is attached makes
    of each of a batch of items; readings of the same function can share a batch · gather: what that of all items makes
    together · size: items of a batch · written: how many tokens a pass may write, behind those of each or in a decoder.
    """

    items: Sequence[Any]
    lengths: Sequence[int]
    forward: Callable[[Backbone, Sequence[Any]], Sequence[Any]]
    gather: Callable[[list[Any]], R]
    batch_size: int
    max_new_tokens: int = 0


NamedRequest = tuple[str, ForwardRequest[Any]]  # with the name of the delta that it is read through
RequestRow = tuple[str, ForwardRequest[Any], int]
MixedBatchBuilder = Callable[[Sequence[str]], tuple[Sequence[int], MixedBatch | None]]
"""How to order the rows of a batch, given the names of their deltas, and the mixture for them in that order.

Rows that the order leaves out are not read.
"""


def run_forward(backbone: Backbone, delta: Delta | None, reading: ForwardRequest[R]) -> R:
    """A reading through a delta or, without one, through the frozen backbone."""
    parts = dict(iter_forward(backbone, delta, reading))
    return reading.gather([parts[number] for number in range(len(parts))])


def iter_forward(backbone: Backbone, delta: Delta | None, reading: ForwardRequest[Any]) -> Iterator[tuple[int, Any]]:
    """The same row by row, with their numbers, as they are read."""
    with attached(backbone, delta and delta.to(backbone.device)):
        for _, number, part in _passes(backbone, [("", reading)], lambda names: (range(len(names)), None)):
            yield number, part


def run_mixed_forward(
    backbone: Backbone,
    readings: Sequence[NamedRequest],
    mix: MixedBatchBuilder,
    *,
    slots: int,
    added: Mapping[str, int],
) -> dict[ForwardRequest[Any], Any]:
    """Readings of the same function in common batches, without those of which a row was left out.

    slots: how many deltas a batch may have · added: how many tokens each puts before its rows.
    """
    parts: dict[ForwardRequest[Any], dict[int, Any]] = {reading: {} for _, reading in readings}
    for reading, number, part in _passes(backbone, readings, mix, slots=slots, added=added):
        parts[reading][number] = part
    whole = {reading: own for reading, own in parts.items() if len(own) == len(reading.items)}
    return {reading: reading.gather([own[number] for number in range(len(own))]) for reading, own in whole.items()}


@torch.inference_mode()
def _passes(
    backbone: Backbone,
    readings: Sequence[NamedRequest],
    mix: MixedBatchBuilder,
    *,
    slots: int = 1,
    added: Mapping[str, int] | None = None,
) -> Iterator[tuple[ForwardRequest[Any], int, Any]]:
    for batch in _batches(backbone, readings, added or {"": 0}, slots=slots):
        order, mixture = mix([name for name, _, _ in batch])
        rows = [batch[i] for i in order]
        if rows:
            with attached(backbone, mixture):
                found = rows[0][1].forward(backbone, [reading.items[number] for _, reading, number in rows])
            yield from ((reading, number, part) for (_, reading, number), part in zip(rows, found, strict=True))


def _batches(
    backbone: Backbone, readings: Sequence[NamedRequest], added: Mapping[str, int], *, slots: int
) -> Iterator[list[RequestRow]]:
    """Batches of rows of like length: of not more than so many deltas, and that all fit the backbone's positions.

    The tokens that a delta puts before its rows, and those that are written, make all rows of a batch longer.
    """
    rows = [(name, reading, number) for name, reading in readings for number in range(len(reading.items))]
    batch: list[RequestRow] = []
    names: set[str] = set()
    written = 0
    for name, reading, number in sorted(rows, key=lambda row: row[1].lengths[row[2]]):
        names, written, length = names | {name}, max(written, reading.max_new_tokens), reading.lengths[number]
        width = length + written if backbone.architecture == "causal" else max(length, written)
        wide = width + max(added[name] for name in names) > backbone.longest_input
        if batch and (len(batch) == reading.batch_size or len(names) > slots or wide):
            yield batch
            batch, names, written = [], {name}, reading.max_new_tokens
        batch.append((name, reading, number))
    if batch:
        yield batch
