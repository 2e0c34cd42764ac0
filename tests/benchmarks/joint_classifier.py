"""What a classifier of the task reaches that is trained on the rows of all tasks at once, which no router may read."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.benchmarks.run_log import say

BATCH, CHUNK = 256, 4096
EPOCHS, MIN_STEPS = 12, 1500
RATE, DECAYS, LABEL_SMOOTHING = 3e-3, (0.0, 1e-4), 0.05


@dataclass(frozen=True)
class LabelledRows:
    """Rows of a matrix of features.

    Attributes:
        places: Their places [N] in the matrix.
        tasks: Numbers [N] of their tasks.
    """

    places: np.ndarray[Any, Any]
    tasks: Tensor


def joint_accuracy(
    features: np.ndarray[Any, Any],
    train: LabelledRows,
    validation: LabelledRows,
    test: LabelledRows,
    *,
    count: int,
) -> float:
    """Return the test accuracy of a softmax regression on the train rows of all tasks at once.

    Its weight decay is chosen on validation rows. Products are taken in bfloat16, with single-precision weights.

    Args:
        features: Features [N, M] of all rows, in half precision.
        train: Rows to train on.
        validation: Rows to choose on.
        test: Rows to measure.
        count: The number of tasks.
    """
    sample = _rows(features, train.places[:: max(len(train.places) // CHUNK, 1)])
    centre, scale = sample.mean(dim=0), sample.std(dim=0).clamp_min(1e-3) * sample.shape[1] ** 0.5
    steps_per_epoch = -(-len(train.places) // BATCH)
    epochs = max(EPOCHS, -(-MIN_STEPS // steps_per_epoch))
    accuracies = []
    for decay in DECAYS:
        torch.manual_seed(0)
        weight = torch.zeros(count, features.shape[1], requires_grad=True)
        bias = torch.zeros(count, requires_grad=True)
        optimizer = torch.optim.AdamW([weight, bias], lr=RATE, weight_decay=decay)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, epochs * steps_per_epoch)
        for _ in range(epochs):
            for batch in torch.split(torch.randperm(len(train.places)), BATCH):
                x = (_rows(features, train.places[batch.numpy()]) - centre) / scale
                logits = (x.bfloat16() @ weight.bfloat16().T).float() + bias
                loss = F.cross_entropy(logits, train.tasks[batch], label_smoothing=LABEL_SMOOTHING)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        right = []
        for rows in (validation, test):
            parts = np.array_split(rows.places, -(-len(rows.places) // CHUNK))
            with torch.no_grad():
                chosen = [
                    (((_rows(features, part) - centre) / scale) @ weight.T + bias).argmax(dim=1) for part in parts
                ]
            right.append(float((torch.cat(chosen) == rows.tasks).double().mean()))
        say(f"joint classifier of {count} tasks: decay {decay}, validation {right[0]:.4f}, test {right[1]:.4f}")
        accuracies.append(tuple(right))
    return max(accuracies)[1]


def _rows(features: np.ndarray[Any, Any], places: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(features[places].astype(np.float32))
