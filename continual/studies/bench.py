"""Where trials are made: by the same steps as a task is learned by, with nothing written to the registry."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from continual.backbone import Backbone
from continual.deltas import Delta
from continual.kinds import Prepared, Seen
from continual.learn import Task, decided, ready, train_from
from continual.lesson import score_of
from continual.search import possible
from continual.studies.trial import Trial
from continual.train import Keep, Trained
from continual.warmstart import Candidate, Neighbour, from_scratch
from tasks import TaskData


@dataclass(frozen=True)
class Subject:
    """The task of a trial, ready, and its start from scratch."""

    task: Task
    start: Candidate


@dataclass(frozen=True)
class Bench:
    """A backbone, the tasks of a stream with their rows, and the seeds that every trial is repeated with."""

    backbone: Backbone
    tasks: tuple[TaskData, ...]
    seeds: tuple[int, ...]
    _subjects: dict[tuple[Any, ...], Subject] = field(default_factory=dict, init=False, repr=False)
    _sources: dict[str, Delta] = field(default_factory=dict, init=False, repr=False)

    def subject(self, trial: Trial) -> Subject:
        """What a trial begins with; the same rows are made ready, and their start worked out, once."""
        room = max(settings.added_tokens for settings in possible(trial.arm.method))  # taken from long texts
        key = (*trial.drawn, trial.budget.max_length, room)
        if key not in self._subjects:
            task = ready(self.backbone, trial.taken)
            seen = (Seen(task.backbone, None, rows) for rows in (task.train, task.validation))
            self._subjects[key] = Subject(task, from_scratch(task.kind.start(*seen)))
        known, spec = self._subjects[key], trial.spec
        assert spec.budget  # what `Trial.spec` fills in
        task = replace(
            known.task, data=replace(known.task.data, spec=spec), method=trial.arm.method, budget=spec.budget
        )
        return Subject(task, known.start)

    def trained(self, trial: Trial, *, keep: Keep = lambda course: None) -> tuple[Task, Trained]:
        """A trial's task as it was trained from scratch, by the method that a search finds where it asks for one."""
        subject = self.subject(trial)
        arm, _ = decided(subject.task, subject.start, seed=trial.seed)
        task = subject.task.by(arm)
        return task, train_from(task, subject.start, seed=trial.seed, keep=keep)

    def neighbour(self, source: Trial) -> Neighbour:
        """The delta of a trial that others start from, which is trained once."""
        if source.key not in self._sources:
            self._sources[source.key] = self.trained(source)[1].delta
        return Neighbour(source.task, self._sources[source.key])


def scored(task: Task, delta: Delta, rows: Prepared) -> float:
    """The score of a delta on rows of a task."""
    return score_of(task.backbone, task.kind, delta, rows=rows, metric=task.data.spec.metric)


def outcome(task: Task, trained: Trained) -> Mapping[str, Any]:
    """What most studies ask of a trial. parameters: of the edits; the head, which all methods have alike, is left out.

    validation: the best epoch's score · seconds: in training steps.
    """
    parameters = sum(value.numel() for value in trained.delta.values.values())
    return {
        "validation": trained.score,
        "test": scored(task, trained.delta, task.test),
        "parameters": parameters,
        "share": parameters / task.backbone.parameter_count,
        "seconds": trained.seconds,
    }
