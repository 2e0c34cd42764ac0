"""Run trials with the same steps as learning a task, without writing to the registry."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

from continual.backbones.backbone import Backbone, load_backbone
from continual.deltas import Delta
from continual.experiments.studies.trial import StudyTrial, TrialBackbone
from continual.kinds import ForwardContext, PreparedRows
from continual.kinds.scoring import score_answers
from continual.learning.learn import search_method
from continual.learning.prepared import PreparedTask, prepare_task
from continual.learning.readout import allowed_readouts, views_at_best_readout
from continual.training.method_search import candidate_settings
from continual.training.training_run import StateCallback, TrainingResult
from continual.transfer.warm_start import Neighbour, WarmStartCandidate, from_scratch
from tasks import TaskData


@dataclass(frozen=True)
class TrialTask:
    """A trial's prepared task.

    Attributes:
        task: The prepared task.
        start: Its start from scratch, with a closed-form head.
    """

    task: PreparedTask
    start: WarmStartCandidate


@dataclass(frozen=True)
class TrialRunner:
    """The tasks and seeds of a study on one backbone, with what trials share cached.

    Attributes:
        backbone: The frozen backbone.
        tasks: The tasks of a stream with their rows.
        seeds: Every trial is repeated with each.
    """

    backbone: Backbone
    tasks: tuple[TaskData, ...]
    seeds: tuple[int, ...]
    _trial_tasks: dict[tuple[Any, ...], TrialTask] = field(default_factory=dict, init=False, repr=False)
    _source_deltas: dict[str, Delta] = field(default_factory=dict, init=False, repr=False)
    _other_runners: dict[str, "TrialRunner"] = field(default_factory=dict, init=False, repr=False)

    @property
    def trial_backbone(self) -> TrialBackbone:
        """The backbone as a trial names it."""
        return TrialBackbone(self.backbone.name, self.backbone.fingerprint, self.backbone.parameter_count)

    def with_backbone(self, name: str) -> "TrialRunner":
        """Return a runner on the named backbone, of the same tasks and seeds and on the same device.

        Beside the stream's own backbone only the last one is kept in memory.

        Raises:
            BackboneError: The backbone cannot be loaded.
        """
        if name == self.backbone.name:
            return self
        if name not in self._other_runners:
            self._other_runners.clear()
            device, dtype = device_and_dtype(self.backbone)
            self._other_runners[name] = replace(self, backbone=load_backbone(name, device=device, dtype=dtype))
        return self._other_runners[name]

    def with_backbone_of(self, trial: StudyTrial) -> "TrialRunner":
        """Return the runner on a trial's backbone."""
        return self if trial.backbone is None else self.with_backbone(trial.backbone.name)

    def trial_task(self, trial: StudyTrial) -> TrialTask:
        """Return a trial's prepared task and start; equal rows are prepared only once."""
        # Tokens that a method adds shorten long texts, so that they are part of the key.
        added_tokens = max(settings.added_tokens for settings in candidate_settings(trial.candidate.method))
        readouts = allowed_readouts(self.backbone, trial.candidate.method)
        key = (*trial.sampling_key, trial.budget.max_length, added_tokens, readouts)
        if key not in self._trial_tasks:
            task = prepare_task(self.backbone, trial.selected_rows).with_fitted_kind()
            train, held_out, _ = views_at_best_readout(task)
            self._trial_tasks[key] = TrialTask(task, from_scratch(task.kind.closed_form_start(train, held_out)))
        cached, spec = self._trial_tasks[key], trial.spec
        assert spec.budget  # filled in by `StudyTrial.spec`
        task = replace(
            cached.task, data=replace(cached.task.data, spec=spec), method=trial.candidate.method, budget=spec.budget
        )
        return TrialTask(task, cached.start)

    def train(
        self, trial: StudyTrial, *, on_state: StateCallback = lambda state: None
    ) -> tuple[PreparedTask, TrainingResult]:
        """Train a trial's task from scratch; a method such as `auto` is chosen by a search first.

        Args:
            trial: The trial.
            on_state: Called with the training state before the first epoch and after each.

        Returns:
            The task with the method that trained it, and the training result.
        """
        trial_task = self.trial_task(trial)
        candidate, _ = search_method(trial_task.task, trial_task.start, seed=trial.seed)
        task = trial_task.task.with_candidate(candidate)
        run = replace(task.training_run(trial_task.start, seed=trial.seed), on_state=on_state)
        return task, run.run()

    def source_delta(self, source: StudyTrial) -> Neighbour:
        """Return the delta of a trial that others start from; it is trained only once."""
        if source.key not in self._source_deltas:
            self._source_deltas[source.key] = self.train(source)[1].delta
        return Neighbour(source.task, self._source_deltas[source.key])


def device_and_dtype(backbone: Backbone) -> tuple[str, str]:
    """Return the arguments `device` and `dtype` by which `load_backbone` uses those of a backbone."""
    return str(backbone.device), str(backbone.dtype).removeprefix("torch.")


def score_on_rows(task: PreparedTask, delta: Delta, rows: PreparedRows) -> float:
    """Return the score of a delta on rows of a task."""
    outputs = task.kind.outputs(ForwardContext(task.backbone, delta, rows), delta.head)
    answers = task.kind.answers(task.backbone, outputs, rows)
    return score_answers(task.kind, task.data.spec.metric, rows, answers)


def summarize(task: PreparedTask, trained: TrainingResult) -> Mapping[str, Any]:
    """Return the outcome that most studies record of a trial.

    Returns:
        `validation`: the best epoch's score; `validation_loss`: its loss, None where it is not finite; `test`: the
        score on test rows; `parameters`: the number of values of the edits, without the head, which all methods have
        alike; `share`: their share of the backbone's parameters; `seconds`: the time of the training steps.
    """
    parameters = sum(value.numel() for value in trained.delta.values.values())
    return {
        "validation": trained.score,
        "validation_loss": loss if isfinite(loss := trained.best.validation_loss) else None,
        "test": score_on_rows(task, trained.delta, task.test),
        "parameters": parameters,
        "share": parameters / task.backbone.parameter_count,
        "seconds": trained.seconds,
    }


def summarize_with_gap(task: PreparedTask, trained: TrainingResult) -> Mapping[str, Any]:
    """Return what `summarize` does, and the generalisation gap.

    Returns:
        Also `train`: the score on train rows; `gap`: `train` less `test`.
    """
    outcome, train = summarize(task, trained), score_on_rows(task, trained.delta, task.train)
    return {**outcome, "train": train, "gap": train - outcome["test"]}
