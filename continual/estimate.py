"""What learning a stream would take, before it is learned."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from continual.backbone import Backbone
from continual.controller import check
from continual.deltas import Delta, Head, attached, fresh_values, method_settings
from continual.features import features, sorted_batches
from continual.learn import Task, ready
from continual.train import batch_loss
from continual.warmstart import NEIGHBOURS_TRIED
from registry import Registry
from tasks import Stream

BYTES_PER_PARAMETER = 4  # deltas are stored in float32


@dataclass(frozen=True)
class Estimate:
    """What a task would take: seconds of learning, parameters and bytes of its delta; notes on its rows."""

    task: str
    train_rows: int
    labels: int
    parameters: int
    bytes: int
    seconds: float
    notes: tuple[str, ...]


def estimate_stream(backbone: Backbone, registry: Registry, stream: Stream) -> list[Estimate]:
    """Check every task of a stream as a run would, and estimate what each would take.

    Raises InputError, naming what to mend.
    """
    known = len(registry.champions(backbone.fingerprint))
    loaded = check(backbone, registry, stream)
    return [estimate(backbone, ready(backbone, data), earlier=known + i) for i, data in enumerate(loaded)]


def estimate(backbone: Backbone, task: Task, *, earlier: int) -> Estimate:
    """Time one training step and one batch of inference on the task's own rows, and multiply.

    earlier: how many tasks there are to start from, each of which costs a pass over the rows.
    """
    delta = _zero(backbone, task).trainable(backbone.device)
    batch = _typical(task.train.tokens.lengths, task.budget.batch_size)
    some = task.train.tokens.take(batch)
    with attached(backbone, delta):
        step = _seconds(lambda: torch.autograd.backward(batch_loss(backbone, delta, task.train, batch))) / len(batch)
    look = _seconds(lambda: features(backbone, some)) / len(batch)
    held_out, test, rows = len(task.validation), len(task.test), len(task.train)
    looks = (rows + held_out) * (1 + min(earlier, NEIGHBOURS_TRIED)) + held_out * (1 + task.budget.epochs) + 3 * test
    return Estimate(
        task=task.data.spec.name,
        train_rows=rows,
        labels=task.classes,
        parameters=delta.parameter_count,
        bytes=delta.parameter_count * BYTES_PER_PARAMETER,
        seconds=step * rows * task.budget.epochs + look * looks,
        notes=task.data.notes,
    )


def _zero(backbone: Backbone, task: Task) -> Delta:
    """A delta of the task's method and size that has learned nothing."""
    settings = method_settings(task.method)
    weight = torch.zeros(task.classes, backbone.hidden_size)
    head = Head(weight, torch.zeros(task.classes), task.data.labels, backbone.pooling)
    return Delta(task.method.name, settings, backbone.fingerprint, fresh_values(backbone, settings, seed=0), head)


def _typical(lengths: list[int], size: int) -> list[int]:
    """The batch of middle length."""
    batches = list(sorted_batches(lengths, size))
    return batches[len(batches) // 2]


def _seconds(work: Callable[[], object]) -> float:
    work()  # the first time pays for what is made once
    _finished()
    began = time.perf_counter()
    work()
    _finished()
    return time.perf_counter() - began


def _finished() -> None:
    """Wait for a GPU, which works on after it was told what to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
