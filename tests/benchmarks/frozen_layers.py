"""How much faster is training whose lower layers are computed once for all epochs?

    python -m tests.benchmarks.frozen_layers [--width 384] [--rows 320] [--epochs 4] [--repeats 5] > below.json

On a random BERT of six layers without dropout: adapters in the top two layers, all of the weights of these
(`last_layer`), or the head alone (`probe`). Each is trained in turn with and without, in one process, after one round
that does not count; what is told are medians of the CPU's seconds without through those with, in the same round: of
everything, computing the lower layers beforehand and scoring eight rows after each epoch included.
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
    """Adapters in the two layers at the top."""

    def edits(self) -> tuple[Edit, ...]:
        return tuple(replace(edit, where=LayerFilter((-1, -2))) for edit in Adapter().edits())


METHODS: Mapping[str, MethodSettings] = {"adapter": TopAdapter(), "last_layer": LastLayer(count=2), "probe": Probe()}


@dataclass(frozen=True)
class Run:
    seconds: float
    losses: tuple[float, ...]


def drawn(rows: int, seed: int) -> ClassificationRows:
    """Texts of 5 to 40 tokens, as many of each length."""
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
    given = parser.parse_args()
    backbone = random_bert(given.width, LAYERS, dropout=0.0)
    quieten()
    budget = Budget(epochs=given.epochs, batch_size=32, learning_rate=1e-4)
    rows, few = drawn(given.rows, 0), drawn(8, 1)
    what: dict[str, Any] = {"validation": few, "budget": budget, "metric": "accuracy", "seed": 0}
    lesson = training_objective(backbone, Classification(LABELS), rows, **what)

    def run(method: str, own: TrainingObjective[list[int]]) -> Run:
        settings = METHODS[method]
        head = Head(torch.zeros(len(LABELS), given.width), torch.zeros(len(LABELS)), LABELS, "mean")
        start = Delta(method, settings, backbone.fingerprint, init_values(backbone, settings, seed=0), head)
        began = time.process_time()
        curve = TrainingRun(backbone, start, own, learning_rate=budget.learning_rate, seed=0).run().curve
        return Run(time.process_time() - began, tuple(epoch.loss for epoch in curve if epoch.loss is not None))

    arms = {"with": lesson, "without": replace(lesson, loss_inputs=None)}
    rounds: list[dict[str, dict[str, Run]]] = []
    for number in range(given.repeats + 1):
        rounds.append({method: {arm: run(method, own) for arm, own in arms.items()} for method in METHODS})
        say(f"round {number} of {given.repeats}")
    document = {
        "width": given.width,
        "layers": LAYERS,
        "rows": given.rows,
        "epochs": given.epochs,
        "threads": torch.get_num_threads(),
        "methods": {method: told([one[method] for one in rounds[1:]]) for method in METHODS},
    }
    print(json.dumps(document, indent=2))


def told(rounds: list[dict[str, Run]]) -> dict[str, Any]:
    ratios = [one["without"].seconds / one["with"].seconds for one in rounds]
    losses = [rounds[0][arm].losses for arm in ("with", "without")]
    return {
        "seconds": {arm: median(one[arm].seconds for one in rounds) for arm in ("with", "without")},
        "ratio": median(ratios),
        "ratios": ratios,
        "largest_difference_of_losses": max(abs(one - other) for one, other in zip(*losses, strict=True)),
    }


if __name__ == "__main__":
    main()
