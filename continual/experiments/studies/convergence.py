"""How soon methods learn: validation score and training loss by epoch, step and second.

Ding et al. (2022), "Delta Tuning" (arXiv:2203.06904), compare methods by their convergence so. An epoch's score is of
the validation rows; epoch 0 is the start, whose head is there in closed form.
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
    """methods: what is compared · rates: multiples of the learning rate, of which the best on validation rows counts ·
    epochs: in place of the tasks' own.
    """

    shows: ClassVar[str] = "learning curves, and the steps to 99 % of the final score"
    paper: ClassVar[str] = "Ding et al. 2022, arXiv:2203.06904, convergence"

    methods: tuple[Method, ...] = Field(default=tuple(Method(name=name) for name in METHODS), min_length=1)
    rates: Rates = RATES
    epochs: int = Field(default=10, ge=1)

    def trials(self, bench: TrialRunner) -> Iterable[StudyTrial]:
        return sweep_trials(bench, self.methods, rates=self.rates, epochs=self.epochs)

    def measure(self, bench: TrialRunner, trial: StudyTrial) -> Mapping[str, Any]:
        seconds: list[float] = []

        def keep(course: TrainingState) -> None:
            seconds.append(course.seconds)

        task, trained = bench.train(trial, keep=keep)
        steps = -(-len(task.train.tokens) // task.budget.batch_size)
        curve: dict[str, list[Any]] = {
            "step": [steps * epoch.number for epoch in trained.curve],
            "second": seconds,
            "loss": [epoch.loss for epoch in trained.curve],
            "score": [epoch.score for epoch in trained.curve],
        }
        there = convergence_epoch(curve["score"])
        return {
            **summarize(task, trained),
            "curve": curve,
            "steps_to_reach": curve["step"][there],
            "seconds_to_reach": seconds[there],
        }

    def result(self, found: Sequence[TrialResult]) -> Result:
        best = best_rates(found)
        values = ("steps_to_reach", "seconds_to_reach", "validation", "test")
        alone, each = {"method": method_of}, {"task": task_of, "method": method_of}
        return Result(
            (
                Section(
                    f"Steps to {CONVERGED_FRACTION:.0%} of the final score",
                    "Means over tasks and seeds; measured after every epoch. Zero steps: the start was as good.",
                    table=means_table(best, alone, values),
                ),
                _figure(best, "score", "epoch", "validation score"),
                _figure(best, "loss", "epoch", "training loss, nats"),
                _figure(best, "score", "second", "validation score"),
                Section("Each task", "Means over the seeds.", table=means_table(best, each, values)),
            ),
            {f"steps_to_reach.{name}": mean for name, mean in mean_outcomes(best, values[0], method_of).items()},
        )


def convergence_epoch(scores: Sequence[float]) -> int:
    """The first point of a curve that is at 99 % of its last one.

    >>> reached([0.5, 0.9, 0.995, 0.98, 1.0])
    2
    """
    enough = scores[-1] - (1 - CONVERGED_FRACTION) * abs(scores[-1])
    return next(i for i, score in enumerate(scores) if score >= enough)


def _figure(found: Sequence[TrialResult], value: str, across: str, up: str) -> Section:
    title = f"{up.partition(',')[0]} by {across}".capitalize()
    lines = {}
    for name in dict.fromkeys(method_of(one.trial) for one in found):
        curves = [one.outcome["curve"] for one in found if method_of(one.trial) == name]
        points = [i for i, known in enumerate(curves[0][value]) if known is not None]
        x = points if across == "epoch" else [mean_of(curve[across][i] for curve in curves) for i in points]
        lines[name] = Line(x, [mean_of(curve[value][i] for curve in curves) for i in points])
    unit = "second of training" if across == "second" else across
    figure = line_plot(lines, title="mean over tasks and seeds", across=unit, up=up)
    return Section(title, figure=figure, caption=f"{up} by {unit}, a line for each method")
