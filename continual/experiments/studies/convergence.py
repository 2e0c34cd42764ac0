"""Study: convergence of methods, as validation score and training loss by epoch, step and second.

Ding et al. (2022), "Delta Tuning" (arXiv:2203.06904), compare the convergence of methods in this way. An epoch's
score is measured on validation rows; epoch 0 is the start, whose head is fitted in closed form.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, final

from pydantic import Field

from continual.experiments.studies.aggregation import (
    RATES,
    Rates,
    best_rates,
    mean_of,
    mean_outcomes,
    means_table,
    method_of,
    sweep_trials,
    task_of,
)
from continual.experiments.studies.study import Study
from continual.experiments.studies.trial import StudyTrial, TrialResult
from continual.experiments.studies.trial_runner import TrialRunner, summarize
from continual.reports.html import Section
from continual.reports.html.study_result import Result
from continual.reports.plots import Line, line_plot
from continual.training.state import TrainingState
from tasks import Method

METHODS = ("full", "lora", "adapter", "prefix", "bitfit", "ia3")
CONVERGED_FRACTION = 0.99  # of the final score


@final
class Convergence(Study):
    """Records the learning curves of methods, and the steps until they have converged.

    Attributes:
        methods: The methods.
        rates: Multiples of the learning rate; the best one on validation rows counts.
        epochs: The number of epochs, in place of the tasks' own.
    """

    shows: ClassVar[str] = "learning curves, and the steps to 99 % of the final score"
    paper: ClassVar[str] = "Ding et al. 2022, arXiv:2203.06904, convergence"

    methods: tuple[Method, ...] = Field(default=tuple(Method(name=name) for name in METHODS), min_length=1)
    rates: Rates = RATES
    epochs: int = Field(default=10, ge=1)

    def trials(self, runner: TrialRunner) -> Iterable[StudyTrial]:
        """See `Study.trials`."""
        return sweep_trials(runner, self.methods, rates=self.rates, epochs=self.epochs)

    def measure(self, runner: TrialRunner, trial: StudyTrial) -> Mapping[str, Any]:
        """See `Study.measure`."""
        seconds: list[float] = []

        def record_seconds(state: TrainingState) -> None:
            seconds.append(state.seconds)

        task, trained = runner.train(trial, on_state=record_seconds)
        steps = -(-len(task.train.tokens) // task.budget.batch_size)
        curve: dict[str, list[Any]] = {
            "step": [steps * epoch.number for epoch in trained.curve],
            "second": seconds,
            "loss": [epoch.loss for epoch in trained.curve],
            "score": [epoch.score for epoch in trained.curve],
        }
        converged = convergence_epoch(curve["score"])
        return {
            **summarize(task, trained),
            "curve": curve,
            "steps_to_reach": curve["step"][converged],
            "seconds_to_reach": seconds[converged],
        }

    def result(self, results: Sequence[TrialResult]) -> Result:
        """See `Study.result`."""
        best = best_rates(results)
        values = ("steps_to_reach", "seconds_to_reach", "validation", "test")
        columns, columns_per_task = {"method": method_of}, {"task": task_of, "method": method_of}
        return Result(
            (
                Section(
                    f"Steps to {CONVERGED_FRACTION:.0%} of the final score",
                    "Means over tasks and seeds; measured after every epoch. Zero steps: the start was as good.",
                    table=means_table(best, columns, values),
                ),
                _figure(best, "score", "epoch", "validation score"),
                _figure(best, "loss", "epoch", "training loss, nats"),
                _figure(best, "score", "second", "validation score"),
                Section("Each task", "Means over the seeds.", table=means_table(best, columns_per_task, values)),
            ),
            {f"steps_to_reach.{name}": mean for name, mean in mean_outcomes(best, values[0], method_of).items()},
        )


def convergence_epoch(scores: Sequence[float]) -> int:
    """Return the index of the first score that reaches 99 % of the last one.

    >>> convergence_epoch([0.5, 0.9, 0.995, 0.98, 1.0])
    2
    """
    threshold = scores[-1] - (1 - CONVERGED_FRACTION) * abs(scores[-1])
    return next(i for i, score in enumerate(scores) if score >= threshold)


def _figure(results: Sequence[TrialResult], value: str, across: str, up: str) -> Section:
    title = f"{up.partition(',')[0]} by {across}".capitalize()
    lines = {}
    for name in dict.fromkeys(method_of(result.trial) for result in results):
        curves = [result.outcome["curve"] for result in results if method_of(result.trial) == name]
        points = [i for i, point in enumerate(curves[0][value]) if point is not None]
        x = points if across == "epoch" else [mean_of(curve[across][i] for curve in curves) for i in points]
        lines[name] = Line(x, [mean_of(curve[value][i] for curve in curves) for i in points])
    unit = "second of training" if across == "second" else across
    figure = line_plot(lines, title="mean over tasks and seeds", xlabel=unit, ylabel=up)
    return Section(title, figure=figure, caption=f"{up} by {unit}, a line for each method")
