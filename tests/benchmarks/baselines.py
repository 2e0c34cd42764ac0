"""Baselines: PEFT's LoRA and full fine-tuning, trained by one loop.

The loop shares batches, optimiser, schedule, clipping, precision and the choice of the best epoch on validation rows
(the start is a candidate) with `continual.training.training_run`. Networks are in train() mode while they learn, so
the checkpoint's own dropout (0.1 for minilm) is active, as it is there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForSequenceClassification

from continual.backbones.backbone import Backbone
from continual.backbones.hub import Pooling
from continual.features.pooling import pool
from continual.features.tokens import pad, shuffled_batches, sorted_batches
from continual.kinds.classification import ClassificationRows
from continual.metrics import metric_score
from continual.training.optimizer import AdamWWithSchedule
from tasks import Budget

RANK = 8
TARGETS = ["query", "value"]


@dataclass(frozen=True)
class Problem:
    """Rows to train on, rows to choose the epoch on, and how answers are scored."""

    rows: ClassificationRows
    validation: ClassificationRows
    metric: str
    budget: Budget
    seed: int


@dataclass(frozen=True)
class Fitted:
    """A baseline after its best epoch: the validation score of every epoch (the start first), and its answers."""

    curve: tuple[float, ...]
    answers: Callable[[ClassificationRows], list[int]]

    @property
    def validation(self) -> float:
        return max(self.curve)


class PooledHead(nn.Module):
    """An encoder with our pooling and a linear head; logits [B, C]."""

    def __init__(self, encoder: Any, weight: Tensor, bias: Tensor, pooling: Pooling) -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())

    def forward(self, **batch: Tensor) -> Tensor:
        hidden = self.encoder(**batch).last_hidden_state
        with torch.autocast(hidden.device.type, enabled=False):  # our heads are applied in float32
            return F.linear(pool(hidden, batch["attention_mask"], self.pooling), self.weight, self.bias)


class LibraryHead(nn.Module):
    """A sequence classifier of transformers; logits [B, C]."""

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, **batch: Tensor) -> Tensor:
        logits: Tensor = self.classifier(**batch).logits
        return logits.float()


def peft_lora(checkpoint: str, classes: int) -> nn.Module:
    """Return PEFT's LoRA for sequence classification, with the library's fresh classification head."""
    return LibraryHead(get_peft_model(_classifier(checkpoint, classes), _lora(TaskType.SEQ_CLS)))


def peft_lora_with_head(checkpoint: str, weight: Tensor, bias: Tensor, pooling: Pooling) -> nn.Module:
    """Return PEFT's LoRA on the plain encoder, with a head that starts from the given values."""
    encoder = AutoModel.from_pretrained(checkpoint, dtype=torch.float32, add_pooling_layer=False)
    return PooledHead(get_peft_model(encoder, _lora(TaskType.FEATURE_EXTRACTION)), weight, bias, pooling)


def full(checkpoint: str, classes: int) -> nn.Module:
    """Return a network whose every weight is trained, with the library's fresh classification head."""
    return LibraryHead(_classifier(checkpoint, classes))


def fit(backbone: Backbone, network: nn.Module, problem: Problem) -> Fitted:
    """Train the parameters of `network` that require gradients, as `train` does, and restore the best epoch."""
    network.to(backbone.device)
    trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
    budget, generator = problem.budget, torch.Generator().manual_seed(problem.seed)
    lengths = problem.rows.tokens.lengths
    epochs = [shuffled_batches(lengths, budget.batch_size, generator) for _ in range(budget.epochs)]
    optimise = AdamWWithSchedule(trained.values(), learning_rate=budget.learning_rate, steps=sum(map(len, epochs)))
    curve, best = [_score(backbone, network, problem)], _copy(trained)
    for batches in epochs:
        network.train()
        for batch in batches:
            optimise(_loss(backbone, network, problem.rows, batch))
        curve.append(_score(backbone, network, problem))
        if curve[-1] > max(curve[:-1]):
            best = _copy(trained)
    network.load_state_dict(best, strict=False)
    return Fitted(tuple(curve), lambda rows: answers(backbone, network, rows))


@torch.inference_mode()
def answers(backbone: Backbone, network: nn.Module, rows: ClassificationRows) -> list[int]:
    """Return the class that the network predicts for every row, in eval() mode."""
    network.eval()
    chosen = torch.empty(len(rows.tokens), dtype=torch.long)
    for indices in sorted_batches(rows.tokens.lengths):
        chosen[indices] = _logits(backbone, network, rows, indices).argmax(dim=1).cpu()
    return chosen.tolist()


def _score(backbone: Backbone, network: nn.Module, problem: Problem) -> float:
    rows = problem.validation
    return metric_score(problem.metric, rows.classes.tolist(), answers(backbone, network, rows))


def _loss(backbone: Backbone, network: nn.Module, rows: ClassificationRows, batch: list[int]) -> Tensor:
    return F.cross_entropy(_logits(backbone, network, rows, batch), rows.classes[batch].to(backbone.device))


def _logits(backbone: Backbone, network: nn.Module, rows: ClassificationRows, batch: list[int]) -> Tensor:
    with backbone.autocast():
        logits: Tensor = network(**pad(backbone, rows.tokens, batch))
    return logits.float()


def _copy(tensors: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def _classifier(checkpoint: str, classes: int) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=classes, dtype=torch.float32)


def _lora(task: TaskType) -> LoraConfig:
    return LoraConfig(task_type=task, r=RANK, lora_alpha=RANK, target_modules=TARGETS)
