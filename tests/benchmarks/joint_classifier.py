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
RATE, LABEL_SMOOTHING = 3e-3, 0.05


@dataclass(frozen=True)
class LabelledRows:
    """Rows of a matrix of features.

    Attributes:
        places: Their places [N] in the matrix.
        classes: Numbers [N] of their classes, of all tasks.
    """

    places: np.ndarray[Any, Any]
    classes: Tensor


@dataclass(frozen=True)
class SoftmaxRegression:
    """A softmax regression whose outputs are grouped by task.

    Attributes:
        centre: Subtracted from the features [M].
        scale: They are divided by it [M].
        weight: Weights [K, M].
        bias: Biases [K].
        task_of_output: The task [K] of each output.
    """

    centre: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    task_of_output: Tensor

    def tasks(self, features: Tensor) -> Tensor:
        """Return the most probable task [N] of features [N, M]; a task is as probable as its outputs together."""
        logits = (features - self.centre) / self.scale @ self.weight.T + self.bias
        shares = torch.zeros(len(features), int(self.task_of_output.max()) + 1)
        return shares.index_add(1, self.task_of_output, logits.softmax(dim=1)).argmax(dim=1)


def joint_accuracy(
    features: np.ndarray[Any, Any],
    train: LabelledRows,
    validation: LabelledRows,
    test: LabelledRows,
    *,
    task_of_class: Tensor,
) -> float:
    """Return how often a softmax regression on the train rows of all tasks at once finds the task of a test row.

    Whether its outputs are classes or tasks is chosen on validation rows.

    Args:
        features: Features [N, M] of all rows, in half precision.
        train: Rows to train on.
        validation: Rows to choose on.
        test: Rows to measure.
        task_of_class: The task [C] of each class.
    """
    results = []
    for by_class in (False, True):
        task_of_output = task_of_class if by_class else torch.arange(int(task_of_class.max()) + 1)
        labels = train.classes if by_class else task_of_class[train.classes]
        model = _fit(features, train.places, labels, task_of_output)
        right = tuple(_accuracy(model, features, rows, task_of_class) for rows in (validation, test))
        outputs = "classes" if by_class else "tasks"
        say(f"joint classifier of {outputs}: validation {right[0]:.4f}, test {right[1]:.4f}")
        results.append(right)
    return max(results, key=lambda right: right[0])[1]


def _fit(
    features: np.ndarray[Any, Any],
    places: np.ndarray[Any, Any],
    labels: Tensor,
    task_of_output: Tensor,
) -> SoftmaxRegression:
    """Train on rows at `places` with labels [N]; products are in bfloat16, with single-precision weights."""
    sample = _rows(features, places[:: max(len(places) // CHUNK, 1)])
    centre, scale = sample.mean(dim=0), sample.std(dim=0).clamp_min(1e-3) * sample.shape[1] ** 0.5
    torch.manual_seed(0)
    weight = torch.zeros(len(task_of_output), features.shape[1], requires_grad=True)
    bias = torch.zeros(len(task_of_output), requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=RATE)
    steps_per_epoch = -(-len(places) // BATCH)
    epochs = max(EPOCHS, -(-MIN_STEPS // steps_per_epoch))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, epochs * steps_per_epoch)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(places)), BATCH):
            x = (_rows(features, places[batch.numpy()]) - centre) / scale
            logits = (x.bfloat16() @ weight.bfloat16().T).float() + bias
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return SoftmaxRegression(centre, scale, weight.detach(), bias.detach(), task_of_output)


def _accuracy(
    model: SoftmaxRegression, features: np.ndarray[Any, Any], rows: LabelledRows, task_of_class: Tensor
) -> float:
    parts = np.array_split(rows.places, -(-len(rows.places) // CHUNK))
    chosen = torch.cat([model.tasks(_rows(features, part)) for part in parts])
    return float((chosen == task_of_class[rows.classes]).double().mean())


def _rows(features: np.ndarray[Any, Any], places: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(features[places].astype(np.float32))
