"""The base class of studies: settings, the trials that follow from them, and a result."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from continual.errors import MethodError, StudyError, TrainingError
from continual.experiments.studies.trial import StudyTrial, TrialResult
from continual.experiments.studies.trial_runner import TrialRunner, summarize
from continual.experiments.studies.trial_store import TrialStore
from continual.reports.html.study_result import Result
from continual.streams.preflight import incompatibilities
from tasks import StrictModel

ProgressCallback = Callable[[int, int, StudyTrial], None]  # trials done, trials in all, and the next trial


class Study(StrictModel, ABC):
    """A study: its fields are settings; it lists its trials, measures one, and combines the results.

    Attributes:
        shows: What the study shows, in one line.
        paper: The paper and figure that it reproduces.
    """

    shows: ClassVar[str]
    paper: ClassVar[str]

    @abstractmethod
    def trials(self, runner: TrialRunner) -> Iterable[StudyTrial]:
        """Return every trial to be measured.

        Raises:
            InputError: The tasks do not meet the study's requirements.
        """

    def measure(self, runner: TrialRunner, trial: StudyTrial) -> Mapping[str, Any]:
        """Run one trial on the runner's backbone and return its outcome as JSON: by default `summarize` of training."""
        return summarize(*runner.train(trial))

    @abstractmethod
    def result(self, results: Sequence[TrialResult]) -> Result:
        """Combine the results of the trials that did not fail into sections and metrics."""


@dataclass(frozen=True)
class StudyRun:
    """A completed study.

    Attributes:
        results: The results of all trials, failed ones included.
        result: The sections and metrics made of those that did not fail.
    """

    results: tuple[TrialResult, ...]
    result: Result


def run_study(
    study: Study,
    runner: TrialRunner,
    store: TrialStore,
    *,
    progress: ProgressCallback = lambda done, total, trial: None,
) -> StudyRun:
    """Run the trials that the store does not hold, one after the other, and combine all results.

    A trial whose training fails, such as by a loss that is not finite, is stored as failed and left out of the result.

    Args:
        study: The study.
        runner: The backbone, tasks and seeds.
        store: The results so far; each new one is added.
        progress: Called before every trial.

    Raises:
        InputError: Nothing is to be measured, or a method does not fit the backbone; nothing has been trained.
        TrainingError: Every trial failed.
    """
    trials = list({trial.key: trial for trial in study.trials(runner)}.values())
    if not trials:
        counts = ", ".join(f"{data.spec.name} {len(data.train)}" for data in runner.tasks)
        raise StudyError(
            f"{study!r} leaves nothing to measure on tasks of so many train rows: {counts}; change a setting, as in "
            "--set NAME=VALUE"
        )
    _check_compatibility(runner, trials)
    for number, trial in enumerate(trials):
        progress(number, len(trials), trial)
        if store.get(trial) is None:
            store.add(trial, _measure_or_failure(study, runner, trial))
    results = tuple(TrialResult(trial, store.get(trial) or {}) for trial in trials)
    succeeded = [result for result in results if not result.failed]
    if not succeeded:
        raise TrainingError(f"all {len(results)} trials failed; the first: {results[0].outcome['failed']}")
    return StudyRun(results, study.result(succeeded))


def _measure_or_failure(study: Study, runner: TrialRunner, trial: StudyTrial) -> Mapping[str, Any]:
    try:
        return study.measure(runner.with_backbone_of(trial), trial)
    except TrainingError as error:
        return {"failed": str(error)}


def _check_compatibility(runner: TrialRunner, trials: Sequence[StudyTrial]) -> None:
    """Raise one error for all tasks and methods that do not fit the backbone.

    Raises:
        MethodError: There are any.
    """
    trials_and_sources = [candidate for trial in trials for candidate in (trial, trial.source) if candidate]
    distinct = {
        (trial.backbone, trial.task, repr(trial.candidate.method), repr(trial.data.spec.template)): trial
        for trial in trials_and_sources
    }
    problems = dict.fromkeys(
        f"backbone {trial.backbone.name!r}: {problem}" if trial.backbone else problem
        for trial in distinct.values()
        for problem in incompatibilities(runner.with_backbone_of(trial).backbone, trial.spec)
    )
    if problems:
        raise MethodError("\n".join(problems))
