"""Estimate the time, size and memory that learning a stream would take."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from continual.backbones.backbone import Backbone
from continual.backbones.layers import activation_checkpointing
from continual.deltas import Delta, MethodSettings, attached, finalize, init_values
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
    """The estimated cost of learning one task.

    Attributes:
        task: The task.
        train_rows: The number of train rows.
        labels: The number of labels.
        parameters: The number of values of its delta.
        bytes: The size of the stored delta.
        seconds: The time that learning takes.
        notes: Remarks on how its rows were loaded.
        warnings: What is suspicious in its rows.
        example: One train row as the model reads it, such as prompt and target of a generation task; else empty.
    """

    task: str
    train_rows: int
    labels: int
    parameters: int
    bytes: int
    seconds: float
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    example: Mapping[str, str]


def estimate_stream(backbone: Backbone, registry: Registry, stream: Stream) -> list[LearningEstimate]:
    """Check every task of a stream as a run would, and estimate the cost of learning each.

    Raises:
        InputError: A task cannot be learned; the message names what to correct.
    """
    require_trainable(backbone)
    earlier = len(registry.champions(backbone.fingerprint))
    loaded = load_and_check(backbone, registry, stream)
    return [estimate_task(prepare_task(backbone, data), earlier=earlier + i) for i, data in enumerate(loaded)]


def estimate_task(task: PreparedTask, *, earlier: int) -> LearningEstimate:
    """Time one training step and one inference batch on the task's own rows, and extrapolate.

    Args:
        task: The prepared task.
        earlier: The number of learned tasks that could be started from; each costs a pass over the rows.
    """
    backbone, kind = task.backbone, task.kind
    batch = _middle_batch(kind.row_lengths(task.train), task.budget.batch_size)
    sample = kind.prepare(backbone, task.data.train.select(batch), max_length=task.budget.max_length)
    delta = _untrained_delta(task)
    stored_delta = finalize(backbone, delta, stage=delta.settings.stages - 1).quantise_to_float16()
    trainable_delta = delta.trainable(backbone.device)
    row_indices = range(len(batch))
    with (
        attached(backbone, trainable_delta),
        activation_checkpointing(backbone) if task.budget.checkpointing else nullcontext(),
    ):
        step_seconds = _time_second_call(
            lambda: torch.autograd.backward(kind.loss(backbone, trainable_delta, sample, row_indices))
        ) / len(batch)
    encode_seconds = _time_second_call(lambda: encode(backbone, sample.tokens)) / len(batch)
    predict_seconds = _time_second_call(
        lambda: kind.outputs(ForwardContext(backbone, delta, sample), delta.head)
    ) / len(batch)
    validation_rows, test_rows, train_rows = len(task.data.validation), len(task.data.test), len(task.data.train)
    encoded_rows = (train_rows + validation_rows) * (1 + min(earlier, MAX_NEIGHBOURS)) + test_rows
    predicted_rows = validation_rows * (1 + task.budget.epochs) + 3 * test_rows
    return LearningEstimate(
        task=task.data.spec.name,
        train_rows=train_rows,
        labels=len(task.data.labels),
        parameters=stored_delta.parameter_count,
        bytes=stored_delta.size,
        seconds=step_seconds * train_rows * task.budget.epochs
        + encode_seconds * encoded_rows
        + predict_seconds * predicted_rows,
        notes=task.data.notes,
        warnings=task.with_truncation_warning().data.warnings,
        example=kind.example(backbone, sample),
    )


def estimate_memory(backbone: Backbone, tasks: Iterable[TaskData]) -> int:
    """Estimate the bytes that learning any one of these tasks takes, without those of the process itself.

        W + 16 max V + max(68 B T D L)

    W: bytes of the backbone's weights, packed ones as they are. V: values of a delta, with their gradient and the two
    moments of AdamW. 68 B T D L: what L layers keep for the gradient of B rows of T tokens in D dimensions: 34 B T D
    values' bytes at 16 bits, twice that at 32; the attention's probabilities are not kept. With `checkpointing` that is
    68 B T D + 4 B T D L: one layer's, and the input of each.

    Korthikanti et al. (2022), "Reducing Activation Recomputation in Large Transformer Models", equation 1.
    """
    max_values, max_activations = 0, 0
    for data in tasks:
        assert data.spec.method  # what `Stream.resolved` fills in
        assert data.spec.budget
        budget, layers = data.spec.budget, backbone.num_layers
        max_values = max(
            max_values, *(_value_count(backbone, settings) for settings in candidate_settings(data.spec.method))
        )
        sequence = max(budget.max_length, (budget.max_prompt or 0) + (budget.max_new_tokens or 0))
        tokens = budget.joint * budget.batch_size * min(sequence, backbone.longest_input)
        max_activations = max(
            max_activations, tokens * backbone.hidden_size * (68 + 4 * layers if budget.checkpointing else 68 * layers)
        )
    weight_bytes: int = sum(weight.numel() * weight.element_size() for weight in backbone.base_module.parameters())
    return weight_bytes + 16 * max_values + max_activations


def _untrained_delta(task: PreparedTask) -> Delta:
    """Initialize a delta of the task's method, of its largest candidate size, with a zero head."""
    settings = max(candidate_settings(task.method), key=lambda settings: _value_count(task.backbone, settings))
    zero_start = from_scratch(HeadStart(task.kind.zero_head(task.backbone), torch.empty(0)))
    return initial_delta(task.backbone, task.kind, zero_start, method=task.method.name, settings=settings, seed=0)


def _value_count(backbone: Backbone, settings: MethodSettings) -> int:
    return sum(value.numel() for value in init_values(backbone, settings, seed=0).values())


def _middle_batch(lengths: list[int], size: int) -> list[int]:
    """Return the row indices of the batch of median length."""
    batches = list(sorted_batches(lengths, size))
    return batches[len(batches) // 2]


def _time_second_call(work: Callable[[], object]) -> float:
    work()  # the first call pays for allocations and caches
    _synchronize()
    started_at = time.perf_counter()
    work()
    _synchronize()
    return time.perf_counter() - started_at


def _synchronize() -> None:
    """Wait for the GPU: its kernels run asynchronously."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
