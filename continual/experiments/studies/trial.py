"""A trial of a study: its inputs as JSON, which identify it, and its result."""

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
class TrialBackbone:
    """The backbone of a trial, where a study compares several.

    Attributes:
        name: Its name, hub id or folder.
        fingerprint: The digest of its configuration and weights.
        parameters: The number of its parameters.
    """

    name: str
    fingerprint: str
    parameters: int


@dataclass(frozen=True)
class StudyTrial:
    """One training run of a study, with all that determines its outcome on one backbone.

    Attributes:
        data: The task and its rows.
        seed: The seed.
        candidate: The method and learning rate.
        budget: The epochs and other limits of training.
        rows: The maximal number of train rows; None takes all.
        shots: The number of rows of each label, of train and of validation, as in Gao et al. (2021), arXiv:2012.15723;
            None takes all.
        source: The trial whose delta this one starts from, or None.
        extra: Further settings that the study varies, as JSON.
        backbone: The backbone; None for the stream's own.
    """

    data: TaskData
    seed: int
    candidate: SearchCandidate
    budget: Budget
    rows: int | None = None
    shots: int | None = None
    source: "StudyTrial | None" = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    backbone: TrialBackbone | None = None

    @property
    def task(self) -> str:
        """The name of the task."""
        return self.data.spec.name

    @cached_property
    def spec(self) -> TaskSpec:
        """The task's specification as this trial learns it."""
        budget = self.budget.model_copy(update={"learning_rate": self.candidate.learning_rate})
        changes = {"method": self.candidate.method, "warm_start": "scratch", "budget": budget}
        return self.data.spec.model_copy(update=changes)

    @property
    def selected_rows(self) -> TaskData:
        """The task with the trial's train and validation rows, and all of its test rows."""
        train, validation, seed = self.data.train, self.data.validation, f"{self.seed}/{self.task}"
        if self.rows is not None:
            train = sample(train, self.rows, seed=f"{seed}/rows", keep_labels=True)
        if self.shots is not None:
            train = sample_shots(train, self.shots, seed=f"{seed}/shots")
            validation = sample_shots(validation, self.shots, seed=f"{seed}/held out")
        return replace(self.data, spec=self.spec, train=train, validation=validation)

    @cached_property
    def data_digest(self) -> str:
        """SHA-256 of the task's rows and of what determines their scores, wherever the rows are stored."""
        data = self.data
        spec = data.spec.model_dump(mode="json", include={"kind", "metric", "template"})
        return digest([spec, data.labels, *(rows.fingerprint for rows in (data.train, data.validation, data.test))])

    @property
    def sampling_key(self) -> tuple[Any, ...]:
        """A key that is equal for trials that use the same rows."""
        is_sampled = self.rows is not None or self.shots is not None
        return self.data_digest, self.rows, self.shots, self.seed if is_sampled else None

    def to_json(self) -> JsonObject:
        """Return all that determines the outcome, as JSON."""
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
            **({"backbone": self.backbone.fingerprint} if self.backbone else {}),
        }

    @cached_property
    def key(self) -> str:
        """SHA-256 of `to_json()`, by which the outcome is stored."""
        return digest(self.to_json())


@dataclass(frozen=True)
class TrialResult:
    """A trial and its outcome.

    Attributes:
        trial: The trial.
        outcome: The measured values, as JSON; `failed` holds the error of a trial that failed.
    """

    trial: StudyTrial
    outcome: Mapping[str, Any]

    @property
    def failed(self) -> bool:
        """True where training failed."""
        return "failed" in self.outcome


def digest(value: object) -> str:
    """Return the SHA-256 of a value's JSON, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
