"""Where trials are made: by the same steps as a task is learned by, with nothing written to the registry."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from continual.backbones.backbone import Backbone
from continual.deltas import Delta
from continual.experiments.studies.trial import StudyTrial
from continual.kinds import ForwardContext, PreparedRows
from continual.learning.learn import search_method
from continual.learning.prepared import PreparedTask, prepare_task
from continual.training.method_search import candidate_settings
from continual.training.objective import validation_score
from continual.training.training_run import StateCallback, TrainingResult
from continual.transfer.warm_start import Neighbour, WarmStartCandidate, from_scratch
from tasks import TaskData


@dataclass(frozen=True)
class TrialTask:
    """The task of a trial, ready, and its start from scratch."""

    task: PreparedTask
    start: WarmStartCandidate


@dataclass(frozen=True)
class TrialRunner:
    """A backbone, the tasks of a stream with their rows, and the seeds that every trial is repeated with."""

    backbone: Backbone
    tasks: tuple[TaskData, ...]
    seeds: tuple[int, ...]
    _subjects: dict[tuple[Any, ...], TrialTask] = field(default_factory=dict, init=False, repr=False)
    _sources: dict[str, Delta] = field(default_factory=dict, init=False, repr=False)

    def trial_task(self, trial: StudyTrial) -> TrialTask:
        """What a trial begins with; the same rows are made ready, and their start worked out, once."""
        room = max(
            settings.added_tokens for settings in candidate_settings(trial.candidate.method)
        )  # taken from long texts
        key = (*trial.sampling_key, trial.budget.max_length, room)
        if key not in self._subjects:
            task = prepare_task(self.backbone, trial.selected_rows)
            seen = (ForwardContext(task.backbone, None, rows) for rows in (task.train, task.validation))
            self._subjects[key] = TrialTask(task, from_scratch(task.kind.closed_form_start(*seen)))
        known, spec = self._subjects[key], trial.spec
        assert spec.budget  # what `Trial.spec` fills in
        task = replace(
            known.task, data=replace(known.task.data, spec=spec), method=trial.candidate.method, budget=spec.budget
        )
        return TrialTask(task, known.start)

    def train(
        self, trial: StudyTrial, *, keep: StateCallback = lambda course: None
    ) -> tuple[PreparedTask, TrainingResult]:
        """A trial's task as it was trained from scratch, by the method that a search finds where it asks for one."""
        subject = self.trial_task(trial)
        arm, _ = search_method(subject.task, subject.start, seed=trial.seed)
        task = subject.task.with_candidate(arm)
        run = replace(task.training_run(subject.start, seed=trial.seed), on_state=keep)
        return task, run.run()

    def source_delta(self, source: StudyTrial) -> Neighbour:
        """The delta of a trial that others start from, which is trained once."""
        if source.key not in self._sources:
            self._sources[source.key] = self.train(source)[1].delta
        return Neighbour(source.task, self._sources[source.key])


def test_score(task: PreparedTask, delta: Delta, rows: PreparedRows) -> float:
    """The score of a delta on rows of a task."""
    return validation_score(task.backbone, task.kind, delta, rows=rows, metric=task.data.spec.metric)


def summarize(task: PreparedTask, trained: TrainingResult) -> Mapping[str, Any]:
    """What most studies ask of a trial. parameters: of the edits; the head, which all methods have alike, is left out.

    validation: the best epoch's score · seconds: in training steps.
    """
    parameters = sum(value.numel() for value in trained.delta.values.values())
    return {
        "validation": trained.score,
        "test": test_score(task, trained.delta, task.test),
        "parameters": parameters,
        "share": parameters / task.backbone.parameter_count,
        "seconds": trained.seconds,
    }
