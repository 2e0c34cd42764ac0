"""Speed-up of training with cached states of the frozen lower layers.

    python -m tests.benchmarks.frozen_layers [--width 384] [--rows 320] [--epochs 4] [--repeats 5] > below.json

On a random BERT of six layers without dropout: adapters in the top two layers, all of their weights (`last_layer`), or
the head alone (`probe`). Each is trained with and without the cache in turn, in one process, after one round of
warm-up. Reported are medians of CPU seconds without the cache divided by those with it in the same round, including
the computation of the cache and scoring eight rows after each epoch.
"""

import argparse
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

from continual.deltas import Delta, Edit, Head, MethodSettings, init_values
from continual.deltas.edit import LayerFilter
from continual.deltas.methods.adapter import Adapter
from continual.deltas.methods.full import LastLayer, Probe
from continual.features.tokens import Tokens
from continual.kinds.classification import Classification, ClassificationRows
from continual.training.objective import TrainingObjective, training_objective
from continual.training.training_run import TrainingRun
from tasks import Budget
from tests.benchmarks.mixed import random_bert
from tests.benchmarks.run_log import quieten, say

LAYERS, LABELS = 6, ("no", "yes")


class TopAdapter(MethodSettings):
    """Adapters in the top two layers."""

    def edits(self) -> tuple[Edit, ...]:
        return tuple(replace(edit, where=LayerFilter((-1, -2))) for edit in Adapter().edits())


METHODS: Mapping[str, MethodSettings] = {"adapter": TopAdapter(), "last_layer": LastLayer(count=2), "probe": Probe()}


@dataclass(frozen=True)
class Run:
    seconds: float
    losses: tuple[float, ...]


def drawn(rows: int, seed: int) -> ClassificationRows:
    """Draw texts of 5 to 40 tokens, equally many of each length."""
    draw = random.Random(seed)
    ids = tuple(tuple(draw.randrange(5, 1000) for _ in range(5 + number % 36)) for number in range(rows))
    classes = torch.tensor([draw.randrange(len(LABELS)) for _ in ids])
    return ClassificationRows(Tokens(ids, None), tuple(LABELS[i] for i in classes.tolist()), classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    backbone = random_bert(arguments.width, LAYERS, dropout=0.0)
    quieten()
    budget = Budget(epochs=arguments.epochs, batch_size=32, learning_rate=1e-4)
    rows, few = drawn(arguments.rows, 0), drawn(8, 1)
    data_settings: dict[str, Any] = {"validation": few, "budget": budget, "metric": "accuracy", "seed": 0}
    cached_objective = training_objective(backbone, Classification(LABELS), rows, **data_settings)

    def run(method: str, objective: TrainingObjective[list[int]]) -> Run:
        settings = METHODS[method]
        head = Head(torch.zeros(len(LABELS), arguments.width), torch.zeros(len(LABELS)), LABELS, "mean")
        start = Delta(method, settings, backbone.fingerprint, init_values(backbone, settings, seed=0), head)
        start_time = time.process_time()
        curve = TrainingRun(backbone, start, objective, learning_rate=budget.learning_rate, seed=0).run().curve
        return Run(time.process_time() - start_time, tuple(epoch.loss for epoch in curve if epoch.loss is not None))

    objectives = {"with": cached_objective, "without": replace(cached_objective, loss_inputs=None)}
    rounds: list[dict[str, dict[str, Run]]] = []
    for number in range(arguments.repeats + 1):
        rounds.append(
            {
                method: {variant: run(method, objective) for variant, objective in objectives.items()}
                for method in METHODS
            }
        )
        say(f"round {number} of {arguments.repeats}")
    document = {
        "width": arguments.width,
        "layers": LAYERS,
        "rows": arguments.rows,
        "epochs": arguments.epochs,
        "threads": torch.get_num_threads(),
        "methods": {method: summary([repeat[method] for repeat in rounds[1:]]) for method in METHODS},
    }
    print(json.dumps(document, indent=2))


def summary(rounds: list[dict[str, Run]]) -> dict[str, Any]:
    ratios = [runs["without"].seconds / runs["with"].seconds for runs in rounds]
    losses = [rounds[0][variant].losses for variant in ("with", "without")]
    return {
        "seconds": {variant: median(runs[variant].seconds for runs in rounds) for variant in ("with", "without")},
        "ratio": median(ratios),
        "ratios": ratios,
        "largest_difference_of_losses": max(abs(a - b) for a, b in zip(*losses, strict=True)),
    }


if __name__ == "__main__":
    main()
