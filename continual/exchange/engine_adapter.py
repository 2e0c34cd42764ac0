"""Convert a registered delta to what a serving engine loads, and measure what the conversion costs.

Shapes: N rows, C labels, D hidden size.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, Head
from continual.deltas.peft_format import MODULE_PREFIX, PeftAdapter
from continual.errors import ExchangeError
from continual.exchange.low_rank import LowRankAdapter, apply_low_rank, to_low_rank
from continual.exchange.peft import base_source, common_config
from continual.exchange.serving_engines import OTHER_EXPORT, ServingEngine
from continual.kinds import ForwardContext, Kind
from continual.kinds.classification import Classification
from continual.kinds.scoring import score_answers
from continual.learning.prepared import PreparedTask, prepare_task
from continual.learning.recorded_rows import reload_rows
from registry import StoredDelta
from tasks.errors import ContinualError

HEAD_REMEDY = "--format peft writes the adapter with the head beside it, and its card the lines that apply it"
RIDGE = 1e-4  # of the mean squared length of a vector


@dataclass(frozen=True)
class ScoreChange:
    """The score of a delta on its test rows, and that of what is exported.

    Attributes:
        metric: The task's metric.
        rows: Number of test rows.
        before: The delta's score.
        after: The score of the export.
    """

    metric: str
    rows: int
    before: float
    after: float


@dataclass(frozen=True)
class EngineAdapter:
    """A delta in the form of a serving engine.

    Attributes:
        adapter: The adapter, with the head among its tensors where there is one.
        rank: Its rank.
        weight_error: As in `LowRankAdapter`.
        labels: Labels of the head's outputs, in order; None without a head.
        score_change: What it costs in score; None where nothing is lost, or the rows cannot be read.
        unmeasured: Why the loss in score is not known; None where it is, or where nothing is lost.
    """

    adapter: PeftAdapter
    rank: int
    weight_error: float | None
    labels: tuple[str, ...] | None = None
    score_change: ScoreChange | None = None
    unmeasured: str | None = None

    @property
    def outputs(self) -> int | None:
        """Number of the head's outputs; None without a head."""
        return None if self.labels is None else len(self.labels)


def to_engine_adapter(
    backbone: Backbone,
    stored: StoredDelta,
    delta: Delta,
    *,
    kind: Kind[Any],
    engine: ServingEngine,
    rank: int | None,
    measured: bool = True,
) -> EngineAdapter:
    """Convert a delta to the adapter that an engine loads.

    Where that is an approximation, it is scored on the test rows of the task, if these can still be read.

    Args:
        backbone: The backbone, as the kind needs it.
        stored: The registered delta.
        delta: Its values.
        kind: Its kind.
        engine: The engine.
        rank: Largest rank, as in `to_low_rank`.
        measured: Whether an approximation is scored.

    Raises:
        ExchangeError: The engine cannot load the delta, its head, or any adapter over the backbone.
    """
    obstacle = engine.family_obstacle(backbone.family.name, is_causal=backbone.architecture == "causal")
    if reason := obstacle or _head_obstacle(engine, kind, delta.head):
        raise ExchangeError(f"{stored.name}: {reason}. {OTHER_EXPORT if obstacle else HEAD_REMEDY}")
    low_rank = to_low_rank(backbone, delta, rank=rank)
    modules = low_rank.adapter.config["target_modules"]
    if reason := engine.module_obstacle(backbone.family.name, modules):
        raise ExchangeError(f"{stored.name}: {reason}. {OTHER_EXPORT}")
    has_bias = low_rank.head is not None and bool((low_rank.head.bias != low_rank.head.bias[0]).any())
    is_scored = measured and (has_bias or low_rank.weight_error is not None)
    task = _reload_task(backbone, stored) if has_bias or is_scored else ""
    if has_bias:
        low_rank = replace(low_rank, head=_without_bias(low_rank, task, stored))
    return EngineAdapter(
        _complete(backbone, low_rank),
        low_rank.rank,
        low_rank.weight_error,
        low_rank.head.labels if low_rank.head else None,
        _score_change(task, delta, low_rank) if is_scored and not isinstance(task, str) else None,
        task if isinstance(task, str) and task else None,
    )


def _head_obstacle(engine: ServingEngine, kind: Kind[Any], head: Head | None) -> str | None:
    """Return why an engine takes no adapter with a head; None where it takes it, or where there is none."""
    if head is None:
        return None
    if not engine.takes_heads:
        return f"{engine.title} takes adapters that write text, and its head computes labels or numbers"
    if not isinstance(kind, Classification):
        return f"{engine.title} takes the head of a classification, and this delta's is another one"
    if head.layers is not None:
        return (
            f"{engine.title} runs all layers of the backbone, and its head reads the states behind {head.layers} "
            "(`readout: {pooling: last}` makes a head for it)"
        )
    if head.pooling != "last":
        return (
            f"{engine.title} reads the state of the last token, and its head the pooling {head.pooling!r} "
            "(`readout: {pooling: last}` makes a head for it)"
        )
    return None


def _reload_task(backbone: Backbone, stored: StoredDelta) -> PreparedTask | str:
    """Return the delta's task with its rows, or why they cannot be read."""
    try:
        return prepare_task(backbone, reload_rows(stored))
    except (ContinualError, ValueError) as error:
        return str(error).splitlines()[0]


def _without_bias(low_rank: LowRankAdapter, task: PreparedTask | str, stored: StoredDelta) -> Head:
    """Return a head without a bias, W + (b − mean b) vᵀ, where vᵀ h is as near to 1 as can be on the train rows h.

    Raises:
        ExchangeError: The rows cannot be read.
    """
    head = low_rank.head
    assert head is not None
    if isinstance(task, str):
        raise ExchangeError(
            f"{stored.name}: the classifier of a causal language model has no bias, and the rows to express the head's "
            f"without one cannot be read ({task}). {HEAD_REMEDY}"
        )
    context = ForwardContext(apply_low_rank(task.backbone, low_rank), None, task.train)
    direction = fit_constant(context.vectors)
    weight = head.weight + (head.bias - head.bias.mean())[:, None] * direction.to(head.weight)
    return replace(head, weight=weight, bias=torch.zeros_like(head.bias))


def fit_constant(vectors: Tensor) -> Tensor:
    """Return v [D] with vᵀ h ≈ 1 for vectors h [N, D]: ridge regression on a constant."""
    inputs = vectors.double()
    gram = inputs.T @ inputs
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    direction: Tensor = torch.linalg.solve(gram + ridge, inputs.sum(dim=0))
    return direction.float()


def _score_change(task: PreparedTask, delta: Delta, low_rank: LowRankAdapter) -> ScoreChange:
    contexts = (
        (ForwardContext(task.backbone, delta, task.test), delta.head),
        (ForwardContext(apply_low_rank(task.backbone, low_rank), None, task.test), low_rank.head),
    )
    metric = task.data.spec.metric
    before, after = (
        score_answers(
            task.kind,
            metric,
            task.test,
            task.kind.answers(context.backbone, task.kind.outputs(context, head), task.test),
        )
        for context, head in contexts
    )
    return ScoreChange(metric, len(task.data.test), before, after)


def _complete(backbone: Backbone, low_rank: LowRankAdapter) -> PeftAdapter:
    """Add the base to the settings, and a head's weight [C, D] as the classifier that transformers puts behind."""
    config = {**low_rank.adapter.config, **common_config(backbone), "base_model_name_or_path": base_source(backbone)}
    if low_rank.head is None:
        return PeftAdapter({**config, "task_type": "CAUSAL_LM"}, low_rank.adapter.tensors)
    classifier = {f"{MODULE_PREFIX}score.weight": low_rank.head.weight}
    return PeftAdapter(
        {**config, "task_type": "SEQ_CLS", "modules_to_save": ["score"]}, {**low_rank.adapter.tensors, **classifier}
    )
