"""Study: the generalization gap of methods by the number of train rows.

    gap = score on the train rows − score on the test rows

Ding et al. (2022), "Delta Tuning" (arXiv:2203.06904), report this gap.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, final

from pydantic import Field

from continual.experiments.studies.aggregation import (
    RATES,
    Rates,
    best_rates,
    group_lines,
    mean_outcomes,
    means_table,
    method_of,
    sweep_trials,
    task_of,
)
from continual.experiments.studies.study import Study
from continual.experiments.studies.trial import StudyTrial, TrialResult
from continual.experiments.studies.trial_runner import TrialRunner, summarize_with_gap
from continual.reports.html import Section
from continual.reports.html.study_result import Result
from continual.reports.plots import line_plot
from tasks import Method

METHODS = ("full", "lora", "adapter", "bitfit", "probe")


@final
class Generalisation(Study):
    """Measures the gap between train and test scores of methods.

    Attributes:
        methods: The methods.
        rows: Numbers of train rows; a task takes part with those that it has.
        rates: Multiples of the learning rate; the best one on validation rows counts.
    """

    shows: ClassVar[str] = "train score less test score, by method and number of train rows"
    paper: ClassVar[str] = "Ding et al. 2022, arXiv:2203.06904, generalisation gap"

    methods: tuple[Method, ...] = Field(default=tuple(Method(name=name) for name in METHODS), min_length=1)
    rows: tuple[Annotated[int, Field(ge=2)], ...] = Field(default=(100, 300, 1000, 3000), min_length=1)
    rates: Rates = RATES

    def trials(self, runner: TrialRunner) -> Iterable[StudyTrial]:
        """See `Study.trials`."""
        for count in self.rows:
            for trial in sweep_trials(runner, self.methods, rates=self.rates, rows=count):
                if len(trial.data.labels) <= count <= len(trial.data.train):
                    yield trial

    def measure(self, runner: TrialRunner, trial: StudyTrial) -> Mapping[str, Any]:
        """See `Study.measure`."""
        return summarize_with_gap(*runner.train(trial))

    def result(self, results: Sequence[TrialResult]) -> Result:
        """See `Study.result`."""
        best, values = best_rates(results), ("train", "test", "gap")
        columns, columns_per_task = (
            {"method": method_of, "rows": _rows},
            {"task": task_of, "method": method_of, "rows": _rows},
        )
        gaps = mean_outcomes(best, "gap", lambda trial: (method_of(trial), _rows(trial)))
        return Result(
            (
                Section("Gap between train and test", TEXT, table=means_table(best, columns, values)),
                _figure(best, "gap", "score on train rows less score on test rows"),
                _figure(best, "test", "test score"),
                Section("Each task", "Means over the seeds.", table=means_table(best, columns_per_task, values)),
            ),
            {f"gap.{name}.{count}": gap for (name, count), gap in gaps.items()},
        )


TEXT = "Means over tasks and seeds. The gap is the score on the train rows less that on the test rows."


def _rows(trial: StudyTrial) -> int:
    assert trial.rows is not None
    return trial.rows


def _figure(results: Sequence[TrialResult], value: str, up: str) -> Section:
    lines = group_lines(mean_outcomes(results, value, lambda trial: (method_of(trial), _rows(trial))))
    figure = line_plot(lines, title="mean over tasks and seeds", xlabel="train rows", ylabel=up, log_x=True)
    title = f"{value} by train rows"
    return Section(title.capitalize(), figure=figure, caption=f"{up} by train rows, a line for each method")
