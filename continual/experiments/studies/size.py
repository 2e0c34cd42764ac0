"""Study: score against the number of trained parameters, relative to full fine-tuning.

Houlsby et al. (2019), "Parameter-Efficient Transfer Learning for NLP" (arXiv:1902.00751), figure 1: every score minus
the score of full fine-tuning on the same task, and its 20th, 50th and 80th percentile over the tasks.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, final

from continual.experiments.studies.aggregation import (
    FULL,
    RATES,
    Rates,
    best_rates,
    gaps_to_full,
    mean_outcomes,
    method_of,
    method_of_name,
    percentiles,
    sweep_trials,
    task_and_method,
    task_columns,
)
from continual.experiments.studies.study import Study
from continual.experiments.studies.trial import StudyTrial, TrialResult
from continual.experiments.studies.trial_runner import TrialRunner
from continual.reports.html import Section, Table
from continual.reports.html.study_result import Result
from continual.reports.plots import Line, line_plot
from tasks import Method

RANKS, WIDTHS = (1, 2, 4, 8, 16, 32, 64), (2, 4, 8, 16, 32, 64, 128)


def _default_methods(layers: int) -> tuple[Method, ...]:
    """Return the default sweep: ranks of LoRA, sizes of adapters, numbers of fine-tuned last layers, and the norms."""
    swept = {"lora": ("rank", RANKS), "adapter": ("size", WIDTHS), "last_layer": ("count", range(1, layers + 1))}
    sized = (method_of_name(name, **{setting: size}) for name, (setting, sizes) in swept.items() for size in sizes)
    return (*sized, Method(name="layer_norm"))


@final
class Size(Study):
    """Compares methods of many sizes with full fine-tuning.

    Attributes:
        methods: The methods, with one line for those of the same name; by default LoRA, adapters and the last layers in
            many sizes, and the norms alone.
        rates: Multiples of the learning rate; the best one on validation rows counts.
    """

    shows: ClassVar[str] = "score against trained parameters, full fine-tuning = 0"
    paper: ClassVar[str] = "Houlsby et al. 2019, arXiv:1902.00751, fig. 1"

    methods: tuple[Method, ...] = ()
    rates: Rates = RATES

    def trials(self, runner: TrialRunner) -> Iterable[StudyTrial]:
        """See `Study.trials`."""
        return sweep_trials(
            runner, (*(self.methods or _default_methods(runner.backbone.num_layers)), FULL), rates=self.rates
        )

    def result(self, results: Sequence[TrialResult]) -> Result:
        """See `Study.result`."""
        best = best_rates(results)
        gaps, sizes = (
            gaps_to_full(mean_outcomes(best, "test", task_and_method)),
            mean_outcomes(best, "parameters", method_of),
        )
        shares = mean_outcomes(best, "share", method_of)
        spread = {name: percentiles(list(row.values())) for name, row in gaps.items() if row}
        table = Table(
            ("method", "parameters", "share", "20th", "median", "80th", "tasks"),
            tuple((name, round(sizes[name]), shares[name], *row, len(gaps[name])) for name, row in spread.items()),
            {"share": ".3%", "20th": "+.3f", "median": "+.3f", "80th": "+.3f"},
        )
        return Result(
            (
                Section("Score less that of full fine-tuning", TEXT, table=table),
                Section(
                    "Score against size",
                    figure=line_plot(
                        _lines(best, sizes, spread),
                        title="score less that of full fine-tuning",
                        xlabel="trained parameters of a task, without the head",
                        ylabel="median over tasks, 20th to 80th percentile",
                        log_x=True,
                        baseline=0.0,
                    ),
                    caption="Score less that of full fine-tuning against the number of trained parameters",
                ),
                Section(
                    "Test score of each task", "Mean over the seeds.", table=task_columns(best, {"method": method_of})
                ),
            ),
            {f"median_gap.{name}": row[1] for name, row in spread.items()},
        )


TEXT = "Over the tasks: 20th percentile, median and 80th percentile of the test score less that of full fine-tuning."


def _lines(
    results: Sequence[TrialResult], sizes: Mapping[str, float], spread: Mapping[str, tuple[float, float, float]]
) -> dict[str, Line]:
    """Build one line per name of a method, through its sizes in ascending order."""
    families = {method_of(result.trial): result.trial.candidate.method.name for result in results}
    lines = {}
    for family in dict.fromkeys(families.values()):
        names = sorted((name for name in spread if families[name] == family), key=lambda name: sizes[name])
        if names:
            low, middle, high = zip(*(spread[name] for name in names), strict=True)
            lines[family] = Line([sizes[name] for name in names], middle, low, high)
    return lines
