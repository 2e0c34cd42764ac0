"""One thing that a study measures: what it was asked, as JSON, and what was found."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from continual.training.method_search import SearchCandidate
from tasks import Budget, TaskData, TaskSpec
from tasks.rows import sample, sample_shots

JsonObject = dict[str, Any]


@dataclass(frozen=True)
class StudyTrial:
    """A task learned once, and all that its outcome follows from on one backbone.

    rows: of train at most so many · shots: so many rows of each label, of validation as of train, as Gao et al. (2021),
    arXiv:2012.15723, have it · source: whose delta it starts from · also: what a study varies besides, as JSON.
    """

    data: TaskData
    seed: int
    candidate: SearchCandidate
    budget: Budget
    rows: int | None = None
    shots: int | None = None
    source: "StudyTrial | None" = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> str:
        return self.data.spec.name

    @cached_property
    def spec(self) -> TaskSpec:
        """The task as this trial learns it."""
        budget = self.budget.model_copy(update={"learning_rate": self.candidate.learning_rate})
        own = {"method": self.candidate.method, "warm_start": "scratch", "budget": budget}
        return self.data.spec.model_copy(update=own)

    @property
    def selected_rows(self) -> TaskData:
        """The task with the rows that the trial takes; its test rows are always all of them."""
        train, validation, drawn = self.data.train, self.data.validation, f"{self.seed}/{self.task}"
        if self.rows is not None:
            train = sample(train, self.rows, seed=f"{drawn}/rows", keep_labels=True)
        if self.shots is not None:
            train = sample_shots(train, self.shots, seed=f"{drawn}/shots")
            validation = sample_shots(validation, self.shots, seed=f"{drawn}/held out")
        return replace(self.data, spec=self.spec, train=train, validation=validation)

    @cached_property
    def data_digest(self) -> str:
        """SHA-256 of the task's rows and of what decides how they are scored, wherever they lie."""
        data = self.data
        spec = data.spec.model_dump(mode="json", include={"kind", "metric", "template"})
        return digest([spec, data.labels, *(rows.fingerprint for rows in (data.train, data.validation, data.test))])

    @property
    def sampling_key(self) -> tuple[Any, ...]:
        """What decides which rows are taken: the same for trials that take the same."""
        few = self.rows is not None or self.shots is not None
        return self.data_digest, self.rows, self.shots, self.seed if few else None

    def to_json(self) -> JsonObject:
        """What was asked, as JSON."""
        return {
            "task": self.task,
            "given": self.data_digest,
            "seed": self.seed,
            **self.candidate.to_json(),
            "budget": self.budget.model_dump(mode="json", exclude={"learning_rate"}),
            "rows": self.rows,
            "shots": self.shots,
            "source": self.source and self.source.to_json(),
            **self.extra,
        }

    @cached_property
    def key(self) -> str:
        """SHA-256 of what was asked, by which its outcome is found again."""
        return digest(self.to_json())


@dataclass(frozen=True)
class TrialResult:
    """A trial and what came of it, as JSON."""

    trial: StudyTrial
    outcome: Mapping[str, Any]

    @property
    def failed(self) -> bool:
        return "failed" in self.outcome


def digest(value: object) -> str:
    """SHA-256 of a value as JSON, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
