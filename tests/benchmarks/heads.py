"""Test accuracy of heads on frozen features, of few and of many rows, and of the delta trained from ours.

    python -m tests.benchmarks.heads STREAM.yaml --sizes 5x,10x,400 --trained trec6 --state heads.jsonl > heads.json

A size such as `10x` is 10 rows per label, and `400` is 400 rows; a tenth of them, stratified, is held out as
validation rows, as for a task of one file. Heads, all on the same train rows:

`logistic`: scikit-learn's LogisticRegressionCV, whose strength is chosen by cross-validation on the train rows.
`closed_form`: the linear discriminant, whose shrinkage is chosen on the validation rows.
`start`: the head that a task starts with, which is what `epochs: 0` serves.
`trained`: the method of the stream, trained from that start with the stream's budget; for the sets of `--trained`.

The features of a set are computed once. Test rows are read for the scores alone. A run that is in the state file is
not made again.
"""

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean

import torch
from sklearn.linear_model import LogisticRegressionCV
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.backbone import Backbone, load_backbone
from continual.deltas import Delta, Head, init_values, method_settings
from continual.features.discriminant import fit_discriminant
from continual.features.logistic_regression import fit_linear_head
from continual.features.pooling import encode
from continual.features.signature import compute_signature
from continual.kinds.classification import Classification, ClassificationRows
from continual.training.training_run import train
from tasks import Budget, LabelledTexts, Method, TaskData, load_task, read_stream
from tasks.rows import sample, sample_shots, split_off
from tests.benchmarks.run_log import Record, State, chosen_names, mean, quieten, say

TEST_ROWS = 1500
VALIDATION_SHARE = 0.1
HEADS = ("logistic", "closed_form", "start", "trained")


@dataclass(frozen=True)
class FeatureSet:
    """A set's rows with their frozen features; rows of a size are part of the same vectors."""

    backbone: Backbone
    data: TaskData
    seed: int

    @property
    def budget(self) -> Budget:
        assert self.data.spec.budget is not None  # the stream's tasks are resolved
        return self.data.spec.budget

    @cached_property
    def test(self) -> ClassificationRows:
        return self.prepared(sample(self.data.test, TEST_ROWS, seed=self.seed))

    @cached_property
    def test_vectors(self) -> Tensor:
        return encode(self.backbone, self.test.tokens)

    @cached_property
    def _vectors(self) -> dict[object, Tensor]:
        return {}

    def prepared(self, rows: LabelledTexts) -> ClassificationRows:
        return Classification(self.data.labels).prepare(self.backbone, rows, max_length=self.budget.max_length)

    def vectors(self, rows: LabelledTexts) -> Tensor:
        """Return the frozen features [N, D] of train rows, each computed once."""
        new = tuple(dict.fromkeys(text for text in rows.texts if text not in self._vectors))
        if new:
            encoded = encode(self.backbone, self.prepared(LabelledTexts(new, ())).tokens)
            self._vectors.update(zip(new, encoded, strict=True))
        return torch.stack([self._vectors[text] for text in rows.texts])

    def sized(self, size: str) -> tuple[LabelledTexts, LabelledTexts]:
        """Return the train and validation rows of a size such as `10x` or `400`."""
        rows = self.data.train
        if size.endswith("x"):
            rows = sample_shots(rows, int(size[:-1]), seed=self.seed)
        else:
            rows = sample(rows, max(int(size), len(self.data.labels)), seed=self.seed, keep_labels=True)
        return split_off(rows, max(1, round(VALIDATION_SHARE * len(rows))), seed=self.seed)

    def accuracy(self, head: Head, vectors: Tensor) -> float:
        return float((head(vectors).argmax(dim=1) == self.test.classes).double().mean())


@dataclass(frozen=True)
class HeadTrial:
    """A set at one size, with the features of its train and validation rows."""

    features: FeatureSet
    train: LabelledTexts
    validation: LabelledTexts

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Train vectors [N, D] and classes [N], then those of the validation rows."""
        parts = (self.train, self.validation)
        (train, train_classes), (held_out, classes) = (
            (self.features.vectors(rows), self.features.prepared(rows).classes) for rows in parts
        )
        return train, train_classes, held_out, classes

    def logistic(self) -> float:
        vectors, classes, *_ = self.rows
        folds = max(2, min(5, int(torch.bincount(classes).min())))
        model = LogisticRegressionCV(Cs=10, cv=folds, max_iter=500)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of labels with a single row, and of releases to come
            model.fit(vectors.numpy(), classes.numpy())
        answers = torch.from_numpy(model.predict(self.features.test_vectors.numpy()))
        return float((answers == self.features.test.classes).double().mean())

    def closed_form(self) -> float:
        vectors, classes, held_out, held_out_classes = self.rows
        signature = compute_signature(vectors, classes, count=len(self.features.data.labels))
        fit = fit_discriminant(signature, held_out, held_out_classes)
        return self._frozen_accuracy(fit.weight, fit.bias)

    def start(self) -> float:
        return self._frozen_accuracy(*self._start)

    @cached_property
    def _start(self) -> tuple[Tensor, Tensor]:
        fit = fit_linear_head(*self.rows, count=len(self.features.data.labels))
        return fit.weight, fit.bias

    def trained(self) -> float:
        features, backbone, spec = self.features, self.features.backbone, self.features.data.spec
        method = spec.method or Method(name="lora")
        settings = method_settings(method)
        head = Head(*self._start, features.data.labels, backbone.pooling)
        values = init_values(backbone, settings, seed=features.seed)
        start = Delta(method.name, settings, backbone.fingerprint, values, head, stage=0).at_stage(0)
        result = train(
            backbone,
            start,
            rows=features.prepared(self.train),
            validation=features.prepared(self.validation),
            budget=features.budget,
            metric=spec.metric,
            seed=features.seed,
        )
        assert result.delta.head is not None
        return features.accuracy(result.delta.head, encode(backbone, features.test.tokens, delta=result.delta))

    def _frozen_accuracy(self, weight: Tensor, bias: Tensor) -> float:
        answers = F.linear(self.features.test_vectors, weight, bias).argmax(dim=1)
        return float((answers == self.features.test.classes).double().mean())


def measure(features: FeatureSet, size: str, heads: list[str], state: State) -> None:
    """Fit the heads of a set at one size that are not in the state file."""
    trial = HeadTrial(features, *features.sized(size))
    fits: dict[str, Callable[[], float]] = {head: getattr(trial, head) for head in heads}
    for head, fit in fits.items():
        about = {"set": features.data.spec.name, "size": size, "head": head, "seed": features.seed}
        if state.find(**about):
            continue
        trial.rows, features.test_vectors  # noqa: B018  # computed before the clock starts
        started = time.process_time()
        score = fit()
        rows = {"rows": len(trial.train), "validation_rows": len(trial.validation), "labels": len(features.data.labels)}
        state.add({**about, **rows, "test": score, "cpu_seconds": round(time.process_time() - started, 2)})


def document(state: State, backbone: Backbone, sizes: list[str], names: list[str]) -> Record:
    """Return every head's test accuracy of each set and size, and its means."""
    tests = {(r["head"], r["set"], r["size"]): r["test"] for r in state.records}

    def row(name: str, size: str) -> Record:
        return {head: tests[head, name, size] for head in HEADS if (head, name, size) in tests}

    table = {size: {name: row(name, size) for name in names if row(name, size)} for size in sizes}
    complete = [scores for by_set in table.values() for scores in by_set.values() if set(HEADS[:3]) <= scores.keys()]
    with_training = [scores for scores in complete if "trained" in scores]
    return {
        "backbone": backbone.name,
        "machine": {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "sizes": table,
        "means": {
            size: {head: mean(s[head] for s in by_set.values() if head in s) for head in HEADS[:3]}
            for size, by_set in table.items()
        },
        "mean": {head: mean(scores[head] for scores in complete) for head in HEADS[:3]},
        "mean_where_trained": {head: mean(scores[head] for scores in with_training) for head in HEADS},
        "mean_below_best_frozen": mean(max(s["logistic"], s["closed_form"]) - s["start"] for s in complete),
        "sets": {
            name: {
                head: fmean(by_set[name][head] for by_set in table.values() if head in by_set.get(name, {}))
                for head in HEADS[:3]
            }
            for name in names
            if any(HEADS[0] in by_set.get(name, {}) for by_set in table.values())
        },
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", type=Path)
    parser.add_argument("--sets", help="names of the stream's tasks, by commas; all of them otherwise")
    parser.add_argument("--sizes", default="5x,10x,20x,400,1000", help="by commas: rows, or rows per label with an x")
    parser.add_argument("--trained", default="", help="sets, by commas, on which a delta is trained as well")
    parser.add_argument("--state", type=Path, help="JSON lines: finished runs are read from it and appended to it")
    parser.add_argument("--report", action="store_true", help="only print the document of what the state file holds")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    stream, state = read_stream(arguments.stream), State(arguments.state)
    specs = {spec.name: spec for spec in stream.resolved()}
    names, sizes = chosen_names(list(specs), arguments.sets), arguments.sizes.split(",")
    backbone = load_backbone(stream.backbone or "minilm")
    quieten()
    for name in [] if arguments.report else names:
        data = load_task(specs[name], folder=stream.folder, seed=stream.seed)
        features = FeatureSet(backbone, replace(data, warnings=()), stream.seed)
        heads = list(HEADS) if name in arguments.trained.split(",") else list(HEADS[:3])
        for size in sizes:
            say(f"{name} {size}")
            measure(features, size, heads, state)
    print(json.dumps(document(state, backbone, sizes, names), indent=2))


if __name__ == "__main__":
    main()
