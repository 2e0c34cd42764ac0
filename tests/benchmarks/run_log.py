"""Shared parts of training benchmarks: a task's rows and start, finished runs in a file, progress messages."""

import json
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers.utils import logging as transformers_logging

from continual.backbones.backbone import Backbone
from continual.backbones.hub import resolve_source
from continual.deltas import Delta, Head, MethodSettings, init_values
from continual.features.discriminant import DiscriminantHead, fit_discriminant
from continual.features.pooling import encode
from continual.features.signature import compute_signature
from continual.kinds.classification import Classification, ClassificationRows
from tasks import Budget, LabelledTexts, TaskData
from tasks.rows import sample

SEARCH_VALIDATION_ROWS = 500

Record = dict[str, Any]


@dataclass(frozen=True)
class TrialTask:
    """A task's rows, all or some of them, and their closed-form start."""

    backbone: Backbone
    data: TaskData
    search_rows: int
    seed: int

    @cached_property
    def train(self) -> ClassificationRows:
        return self.prepared(self.data.train)

    @cached_property
    def validation(self) -> ClassificationRows:
        return self.prepared(self.data.validation)

    @cached_property
    def few(self) -> "TrialTask":
        """The stratified rows on which learning rates are compared."""
        data, count = self.data, max(self.search_rows, len(self.data.labels))
        rows = sample(data.train, count, seed=self.seed, keep_labels=True)
        held_out = sample(data.validation, SEARCH_VALIDATION_ROWS, seed=self.seed)
        return replace(self, data=replace(data, train=rows, validation=held_out))

    @cached_property
    def start(self) -> DiscriminantHead:
        vectors = encode(self.backbone, self.train.tokens)
        signature = compute_signature(vectors, self.train.classes, count=len(self.data.labels))
        return fit_discriminant(signature, encode(self.backbone, self.validation.tokens), self.validation.classes)

    @property
    def checkpoint(self) -> str:
        return resolve_source(self.backbone.name)

    @property
    def budget(self) -> Budget:
        assert self.data.spec.budget is not None  # the stream's tasks are resolved
        return self.data.spec.budget

    def prepared(self, rows: LabelledTexts) -> ClassificationRows:
        return Classification(self.data.labels).prepare(self.backbone, rows, max_length=self.budget.max_length)

    def classes(self, delta: Delta, rows: ClassificationRows) -> list[int]:
        """Return the class that a delta predicts for every row."""
        assert delta.head is not None
        classes: list[int] = delta.head(encode(self.backbone, rows.tokens, delta=delta)).argmax(dim=1).tolist()
        return classes

    def fresh(self, method: str, settings: MethodSettings) -> Delta:
        """Return an untrained delta with the closed-form head."""
        head = Head(self.start.weight, self.start.bias, self.data.labels, self.backbone.pooling)
        values = init_values(self.backbone, settings, seed=self.seed)
        return Delta(method, settings, self.backbone.fingerprint, values, head, stage=0).at_stage(0)

    def training(self, learning_rate: float) -> dict[str, Any]:
        """Return the arguments of `train` besides backbone and start."""
        return {
            "rows": self.train,
            "validation": self.validation,
            "budget": self.budget.model_copy(update={"learning_rate": learning_rate}),
            "metric": self.data.spec.metric,
            "seed": self.seed,
        }


class State:
    """Finished runs in a file of JSON lines, found by their settings."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
        self.records: list[Record] = [json.loads(line) for line in lines]

    def find(self, **settings: Any) -> Record | None:
        matches = (r for r in self.records if all(r[key] == value for key, value in settings.items()))
        return next(matches, None)

    def add(self, record: Record) -> Record:
        self.records.append(record)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        say(" ".join(f"{key}={value}" for key, value in record.items() if key != "curve"))
        return record


def mean(values: Iterable[float]) -> float | None:
    return fmean(numbers) if (numbers := list(values)) else None


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def chosen_names(allowed: Sequence[str], selection: str | None) -> list[str]:
    names = list(allowed) if selection is None else selection.split(",")
    if unknown := set(names) - set(allowed):
        sys.exit(f"not known: {', '.join(sorted(unknown))}; allowed: {', '.join(allowed)}")
    return [name for name in allowed if name in names]


def quieten() -> None:
    """Silence transformers; call it after loading a backbone, which turns progress bars on again."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # PEFT asks for an old name
