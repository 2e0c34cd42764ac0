"""What every study is: settings that a person may write, trials that follow from them, and what is made of those."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from continual.errors import MethodError, StudyError, TrainingError
from continual.experiments.studies.trial import StudyTrial, TrialResult
from continual.experiments.studies.trial_runner import TrialRunner
from continual.experiments.studies.trial_store import TrialStore
from continual.reports.html.study_result import Result
from continual.streams.preflight import incompatibilities
from tasks import StrictModel

ProgressCallback = Callable[[int, int, StudyTrial], None]  # trials done, trials in all, and the next


class Study(StrictModel, ABC):
    """One study. A subclass adds its settings, says which trials they mean, makes one, and makes a result of all.

    shows: what it shows, in a line · paper: where its figure comes from.
    """

    shows: ClassVar[str]
    paper: ClassVar[str]

    @abstractmethod
    def trials(self, bench: TrialRunner) -> Iterable[StudyTrial]:
        """Everything to be measured. Raises InputError where the tasks are not what the study needs."""

    @abstractmethod
    def measure(self, bench: TrialRunner, trial: StudyTrial) -> Mapping[str, Any]:
        """What comes of one trial, as JSON."""

    @abstractmethod
    def result(self, found: Sequence[TrialResult]) -> Result:
        """What the trials come to, those that failed left out."""


@dataclass(frozen=True)
class StudyRun:
    """A study that was carried out: all that was found, and what it came to."""

    results: tuple[TrialResult, ...]
    result: Result


def run_study(
    study: Study, bench: TrialRunner, ledger: TrialStore, *, made: ProgressCallback = lambda done, total, trial: None
) -> StudyRun:
    """Make the trials that the ledger does not hold, one after the other, and sum all of them up.

    A trial whose loss is no longer a number is kept as failed and left out of the result.
    Raises InputError before anything is trained, LearnError where every trial failed.
    """
    trials = list({trial.key: trial for trial in study.trials(bench)}.values())
    if not trials:
        counts = ", ".join(f"{data.spec.name} {len(data.train)}" for data in bench.tasks)
        raise StudyError(
            f"{study!r} leaves nothing to measure on tasks of so many train rows: {counts}; change a setting, as in "
            "--set NAME=VALUE"
        )
    _check(bench, trials)
    for number, trial in enumerate(trials):
        made(number, len(trials), trial)
        if ledger.get(trial) is None:
            ledger.add(trial, _measured(study, bench, trial))
    found = tuple(TrialResult(trial, ledger.get(trial) or {}) for trial in trials)
    there = [one for one in found if not one.failed]
    if not there:
        raise TrainingError(f"all {len(found)} trials failed; the first: {found[0].outcome['failed']}")
    return StudyRun(found, study.result(there))


def _measured(study: Study, bench: TrialRunner, trial: StudyTrial) -> Mapping[str, Any]:
    try:
        return study.measure(bench, trial)
    except TrainingError as error:
        return {"failed": str(error)}


def _check(bench: TrialRunner, trials: Sequence[StudyTrial]) -> None:
    """Raise MethodError, one message, for tasks and methods that do not fit the backbone."""
    asked = [own for trial in trials for own in (trial, trial.source) if own]
    specs = {(one.task, repr(one.candidate.method), repr(one.data.spec.template)): one.spec for one in asked}
    problems = dict.fromkeys(problem for spec in specs.values() for problem in incompatibilities(bench.backbone, spec))
    if problems:
        raise MethodError("\n".join(problems))
