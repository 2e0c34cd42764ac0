"""Score a delta's answers, with an interval that says how far the score can be trusted."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn import metrics as sk
from torch import Tensor

from continual.backbone import Backbone
from continual.deltas import Delta
from continual.features import Tokens, features, tokenize
from tasks import Rows

METRICS: Mapping[str, Callable[[Sequence[int], Sequence[int]], float]] = {
    "accuracy": sk.accuracy_score,
    "macro_f1": lambda truth, answers: sk.f1_score(truth, answers, labels=sorted(set(truth)), average="macro"),
    "mcc": sk.matthews_corrcoef,
}
RESAMPLES = 200
Z = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclass(frozen=True)
class Prepared:
    """Rows ready for the backbone: their tokens, and their classes [N] as numbers."""

    tokens: Tokens
    classes: Tensor

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Measured:
    """A score, the number of rows it was measured on, and its 95 % interval."""

    value: float
    rows: int
    low: float
    high: float


def prepare(backbone: Backbone, rows: Rows, *, labels: Sequence[str], max_length: int) -> Prepared:
    """Tokens and class numbers of rows whose labels are all among `labels`."""
    number = {label: i for i, label in enumerate(labels)}
    return Prepared(
        tokenize(backbone, rows.texts, max_length=max_length),
        torch.tensor([number[label] for label in rows.labels], dtype=torch.long),
    )


@torch.inference_mode()
def logits(backbone: Backbone, delta: Delta, tokens: Tokens) -> Tensor:
    """The delta's logits [N, C], on the CPU."""
    return delta.head(features(backbone, tokens, delta=delta).to(delta.head.weight.device)).cpu()


def predict_classes(backbone: Backbone, delta: Delta, rows: Prepared) -> list[int]:
    """The class that the delta answers for every row."""
    answers: list[int] = logits(backbone, delta, rows.tokens).argmax(dim=1).tolist()
    return answers


def metric_score(metric: str, truth: Sequence[int], answers: Sequence[int]) -> float:
    """`metric` of the answers, a fraction (Matthews' coefficient: −1 to 1)."""
    return float(METRICS[metric](truth, answers))


def measure(metric: str, truth: Sequence[int], answers: Sequence[int]) -> Measured:
    """`metric` with its 95 % interval: Wilson's (1927) for accuracy, else the bootstrap's percentiles (Efron 1979).

    >>> measure("accuracy", [0, 1, 1, 0], [0, 1, 1, 1])
    Measured(value=0.75, rows=4, low=0.30064184258700566, high=0.9544127391902995)
    """
    value = metric_score(metric, truth, answers)
    low, high = wilson(value, len(truth)) if metric == "accuracy" else _bootstrap(metric, truth, answers)
    return Measured(value, len(truth), low, high)


def wilson(share: float, rows: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share observed on so many rows."""
    centre = (share + Z**2 / (2 * rows)) / (1 + Z**2 / rows)
    half = Z / (1 + Z**2 / rows) * math.sqrt(share * (1 - share) / rows + Z**2 / (4 * rows**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _bootstrap(metric: str, truth: Sequence[int], answers: Sequence[int]) -> tuple[float, float]:
    draw = np.random.default_rng(0)
    pairs = np.stack([truth, answers], axis=1)
    values = [metric_score(metric, *pairs[draw.integers(len(pairs), size=len(pairs))].T) for _ in range(RESAMPLES)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
