"""Speed of training several deltas jointly, relative to one after the other.

    python -m tests.benchmarks.joint_training [--width 384] [--tokens 16] [--rows 32] [--tasks 1,8,16,32] > joint.json

Every task learns LoRA of rank 8 on query and value of a random BERT, and a head of 4 labels, from batches that together
have `rows` rows: the more tasks, the fewer rows of each. Both ways are timed in turn in one process, after a warm-up
round; medians of the ratio are printed. Before that, both must give the same losses, to 1e-3.
"""

import argparse
import json
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.backbone import Backbone
from continual.backbones.readout import Readout
from continual.deltas import Delta, Head, init_values, method_settings
from continual.features.pooling import pooled_features
from continual.features.tokens import Tokens, pad
from continual.training.joint import train_jointly
from continual.training.objective import Evaluation, PooledLoss, TrainingObjective
from continual.training.training_run import TrainingResult, TrainingRun
from tasks import Method
from tests.benchmarks.mixed import LORA, random_bert
from tests.benchmarks.run_log import quieten, say

LABELS, STEPS, RATE = ("a", "b", "c", "d"), 16, 1e-3


def start_of(backbone: Backbone, seed: int) -> Delta:
    settings, draw = method_settings(Method(name="lora", **LORA)), torch.Generator().manual_seed(seed)
    head = Head(0.02 * torch.randn(4, backbone.hidden_size, generator=draw), torch.zeros(4), LABELS, "mean")
    return Delta("lora", settings, backbone.fingerprint, init_values(backbone, settings, seed=seed), head)


def objective_of(backbone: Backbone, seed: int, *, tokens: int, rows: int) -> TrainingObjective[list[int]]:
    """Draw random texts with random labels, STEPS batches of them."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 1000, (STEPS * rows, tokens), generator=draw)
    texts, classes = Tokens(tuple(map(tuple, ids.tolist())), None), torch.randint(4, (STEPS * rows,), generator=draw)

    def loss_of(head: Head, vectors: Tensor, batch: list[int]) -> Tensor:
        return F.cross_entropy(head(vectors), classes[batch].to(vectors.device))

    def loss(delta: Delta, batch: list[int]) -> Tensor:
        assert delta.head is not None
        return loss_of(delta.head, pooled_features(backbone, pad(backbone, texts, batch), Readout("mean")), batch)

    batches = [list(range(step * rows, (step + 1) * rows)) for step in range(STEPS)]
    return TrainingObjective(
        [batches], STEPS * rows, loss, lambda delta: Evaluation(0.0, 0.0), pooled_loss=PooledLoss(texts.take, loss_of)
    )


class JointAndSequential:
    """Equal trainings, run jointly and one after the other."""

    def __init__(self, backbone: Backbone, tasks: int, *, tokens: int, rows: int) -> None:
        self._backbone = backbone
        self._starts = [start_of(backbone, seed) for seed in range(tasks)]
        self._lessons = [objective_of(backbone, seed, tokens=tokens, rows=rows) for seed in range(tasks)]

    def one_by_one(self) -> list[TrainingResult]:
        pairs = zip(self._starts, self._lessons, strict=True)
        return [
            TrainingRun(self._backbone, start, objective, learning_rate=RATE, seed=0).run()
            for start, objective in pairs
        ]

    def together(self) -> list[TrainingResult]:
        pairs = enumerate(zip(self._starts, self._lessons, strict=True))
        runs: dict[str, TrainingRun[list[int]]] = {
            str(n): TrainingRun(self._backbone, start, objective, learning_rate=RATE, seed=0)
            for n, (start, objective) in pairs
        }
        results = dict(train_jointly(runs, seed=0))
        return [result for result in (results[name] for name in runs) if isinstance(result, TrainingResult)]


def timed(ways: JointAndSequential, device: torch.device, repeats: int) -> dict[str, float]:
    """Return the median ratio of sequential to joint time, and milliseconds of a joint step per task."""
    ratios, together = [], []
    for round in range(repeats + 1):
        seconds = []
        for way in (ways.one_by_one, ways.together):
            start = time.perf_counter()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
        if round:
            ratios.append(seconds[0] / seconds[1])
            together.append(1000 * seconds[1] / STEPS)
    return {"speedup": median(ratios), "step_ms": median(together)}


def check(ways: JointAndSequential) -> None:
    """Raise AssertionError if the losses differ between both ways."""
    losses = [[trained.curve[-1].loss for trained in way()] for way in (ways.one_by_one, ways.together)]
    torch.testing.assert_close(*(torch.tensor(loss) for loss in losses), rtol=1e-3, atol=1e-3)


def measured(backbone: Backbone, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    cells = []
    for tasks in arguments.tasks:
        ways = JointAndSequential(backbone, tasks, tokens=arguments.tokens, rows=max(arguments.rows // tasks, 1))
        check(ways)
        cell = {"tasks": tasks, "rows_of_a_task": max(arguments.rows // tasks, 1)}
        cell |= timed(ways, backbone.device, arguments.repeats)
        say(str(cell))
        cells.append(cell)
    return cells


def numbers(text: str) -> Sequence[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"width": 384, "layers": 6, "tokens": 16, "rows": 32, "repeats": 25}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tasks", type=numbers, default=[1, 8, 16, 32])
    arguments = parser.parse_args()
    quieten()
    backbone = random_bert(arguments.width, arguments.layers)
    for module in backbone.model.modules():  # its draws depend on the batch
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    about = {"device": str(backbone.device), "threads": torch.get_num_threads(), **vars(arguments)}
    print(json.dumps({**about, "cells": measured(backbone, arguments)}, indent=1))


if __name__ == "__main__":
    main()
