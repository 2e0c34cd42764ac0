"""What learning a stream would take, before it is learned."""

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, MethodSettings, activation_checkpointing, attached, finalize, init_values
from continual.features.pooling import encode
from continual.features.tokens import sorted_batches
from continual.kinds import ForwardContext, HeadStart
from continual.learning.prepared import PreparedTask, prepare_task
from continual.streams.preflight import load_and_check, require_trainable
from continual.training.method_search import candidate_settings
from continual.transfer.warm_start import MAX_NEIGHBOURS, from_scratch, initial_delta
from registry import Registry
from tasks import Stream, TaskData


@dataclass(frozen=True)
class LearningEstimate:
    """What a task would take: seconds of learning, parameters and bytes of its delta; notes on its rows."""

    task: str
    train_rows: int
    labels: int
    parameters: int
    bytes: int
    seconds: float
    notes: tuple[str, ...]


def estimate_stream(backbone: Backbone, registry: Registry, stream: Stream) -> list[LearningEstimate]:
    """Check every task of a stream as a run would, and estimate what each would take.

    Raises InputError, naming what to mend.
    """
    require_trainable(backbone)
    known = len(registry.champions(backbone.fingerprint))
    loaded = load_and_check(backbone, registry, stream)
    return [estimate_task(prepare_task(backbone, data), earlier=known + i) for i, data in enumerate(loaded)]


def estimate_task(task: PreparedTask, *, earlier: int) -> LearningEstimate:
    """Time one training step and one batch of inference on the task's own rows, and multiply.

    earlier: how many tasks there are to start from, each of which costs a pass over the rows.
    """
    backbone, kind = task.backbone, task.kind
    batch = _typical(task.train.tokens.lengths, task.budget.batch_size)
    some = kind.prepare(backbone, task.data.train.select(batch), max_length=task.budget.max_length)
    delta = _zero(task)
    kept = finalize(backbone, delta, stage=delta.settings.stages - 1).quantise_to_float16()
    learned = delta.trainable(backbone.device)
    every = range(len(batch))
    with (
        attached(backbone, learned),
        activation_checkpointing(backbone) if task.budget.checkpointing else nullcontext(),
    ):
        step = _seconds(lambda: torch.autograd.backward(kind.loss(backbone, learned, some, every))) / len(batch)
    look = _seconds(lambda: encode(backbone, some.tokens)) / len(batch)
    answer = _seconds(lambda: kind.outputs(ForwardContext(backbone, delta, some), delta.head)) / len(batch)
    held_out, test, rows = len(task.data.validation), len(task.data.test), len(task.data.train)
    looks = (rows + held_out) * (1 + min(earlier, MAX_NEIGHBOURS)) + test
    answers = held_out * (1 + task.budget.epochs) + 3 * test
    return LearningEstimate(
        task=task.data.spec.name,
        train_rows=rows,
        labels=len(task.data.labels),
        parameters=kept.parameter_count,
        bytes=kept.size,
        seconds=step * rows * task.budget.epochs + look * looks + answer * answers,
        notes=task.data.notes,
    )


def estimate_memory(backbone: Backbone, tasks: Iterable[TaskData]) -> int:
    """About how many bytes learning any one of these tasks takes, those of the process itself left out.

        W + 16 max V + max(68 B T D L)

    for the W bytes of the backbone's weights, packed ones as they are, the V values of a delta with their gradient and
    the two moments of AdamW, and what L layers keep for the gradient of B rows of T tokens: 34 B T D values' bytes at
    16 bits, twice that at 32; the attention's probabilities are not kept. With `checkpointing` that is 68 B T D + 4 B T
    D L: one layer's, and what enters each. Korthikanti et al. (2022), "Reducing Activation Recomputation in Large
    Transformer Models", equation 1.
    """
    values, kept = 0, 0
    for data in tasks:
        assert data.spec.method  # what `Stream.resolved` fills in
        assert data.spec.budget
        budget, layers = data.spec.budget, backbone.layers
        values = max(values, *(_size(backbone, settings) for settings in candidate_settings(data.spec.method)))
        rows = budget.joint * budget.batch_size * min(budget.max_length, backbone.longest_input)
        kept = max(kept, rows * backbone.hidden_size * (68 + 4 * layers if budget.checkpointing else 68 * layers))
    weights: int = sum(weight.numel() * weight.element_size() for weight in backbone.base_module.parameters())
    return weights + 16 * values + kept


def _zero(task: PreparedTask) -> Delta:
    """A delta of the task's method and size that has learned nothing."""
    settings = max(candidate_settings(task.method), key=lambda settings: _size(task.backbone, settings))
    blank = from_scratch(HeadStart(task.kind.zero_head(task.backbone), torch.empty(0)))
    return initial_delta(task.backbone, task.kind, blank, method=task.method.name, settings=settings, seed=0)


def _size(backbone: Backbone, settings: MethodSettings) -> int:
    return sum(value.numel() for value in init_values(backbone, settings, seed=0).values())


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
