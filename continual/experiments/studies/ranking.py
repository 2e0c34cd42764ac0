"""Study: the ranking of methods, with the standard deviation over seeds.

    score of a seed = mean over tasks of the test score

Ding et al. (2022), "Delta Tuning" (arXiv:2203.06904), compare the overall performance of methods; ranks are averaged
over tasks as in Demšar (2006), "Statistical Comparisons of Classifiers over Multiple Data Sets".
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, final

from pydantic import Field
from scipy.stats import rankdata

from continual.experiments.studies.aggregation import (
    FORMATS,
    FULL,
    Rates,
    best_rates,
    deviation,
    mean_of,
    mean_outcomes,
    method_of,
    method_of_name,
    seed_means,
    sweep_trials,
    task_columns,
)
from continual.experiments.studies.study import Study
from continual.experiments.studies.trial import StudyTrial, TrialResult
from continual.experiments.studies.trial_runner import TrialRunner
from continual.reports.html import Section, Table
from continual.reports.html.study_result import Result
from continual.reports.plots import dot_plot
from tasks import Method

METHODS: Mapping[str, Method] = {
    "full": FULL,
    "probe": method_of_name("probe"),
    "lora": method_of_name("lora", rank=8),
    "lora rank 2": method_of_name("lora", rank=2, alpha=2),
    "dora": method_of_name("dora", rank=8),
    "adapter": method_of_name("adapter", size=64),
    "adapter_pfeiffer": method_of_name("adapter_pfeiffer", size=64),
    "parallel_adapter": method_of_name("parallel_adapter", size=64),
    "mam": method_of_name("mam"),
    "prefix": method_of_name("prefix"),
    "prompt": method_of_name("prompt"),
    "ia3": method_of_name("ia3"),
    "layer_norm": method_of_name("layer_norm"),
    "bitfit": method_of_name("bitfit"),
    "adapter_bitfit": method_of_name("adapter_bitfit"),
    "last_layer": method_of_name("last_layer"),
    "selective": method_of_name("selective"),
    "diff_pruning": method_of_name("diff_pruning"),
    "masking": method_of_name("masking"),
    "intrinsic": method_of_name("intrinsic"),
    "lora, then bitfit": method_of_name("sequential", parts=["lora", "bitfit"]),
}
"""The methods and settings that the table of `docs/reference/methods.md` compares, by its names."""

# The lowest is for methods of whole weights, the highest for those of few parameters.
WIDE_RATES: Rates = (0.05, 0.5, 2.0, 10.0)

TEXT = (
    "Mean test score over tasks, and its standard deviation over seeds, of tasks on which no method failed. "
    "Mean rank: over tasks and seeds, 1 for the best; equal scores share a rank."
)


@final
class Ranking(Study):
    """Ranks methods by their mean test score over the tasks.

    Attributes:
        methods: The methods; by default those that the documentation compares.
        rates: Multiples of the learning rate; the best one on validation rows counts.
    """

    shows: ClassVar[str] = "ranking of methods, with mean and standard deviation over seeds"
    paper: ClassVar[str] = "Ding et al. 2022, arXiv:2203.06904, overall performance"

    methods: tuple[Method, ...] = Field(default=tuple(METHODS.values()), min_length=1)
    rates: Rates = WIDE_RATES

    def trials(self, runner: TrialRunner) -> Iterable[StudyTrial]:
        """See `Study.trials`."""
        return sweep_trials(runner, self.methods, rates=self.rates)

    def result(self, results: Sequence[TrialResult]) -> Result:
        """See `Study.result`."""
        best = best_rates(results)
        by_method = seed_means(best, method_of)
        ranked = {name: by_method[name] for name in sorted(by_method, key=lambda name: -mean_of(by_method[name]))}
        ranks = mean_ranks(best)
        costs = {value: mean_outcomes(best, value, method_of) for value in ("parameters", "share", "seconds")}
        rows = tuple(
            (name, mean_of(by_seed), deviation(by_seed), ranks[name], *(cost[name] for cost in costs.values()))
            for name, by_seed in ranked.items()
        )
        columns = ("method", "test", "deviation", "mean rank", *costs)
        dots = {"methods": {name: (mean_of(by_seed), deviation(by_seed)) for name, by_seed in ranked.items()}}
        return Result(
            (
                Section(
                    "Ranking",
                    TEXT,
                    table=Table(columns, rows, {**FORMATS, "mean rank": ".1f", "seconds": ".1f"}),
                    figure=dot_plot(dots, title="mean over tasks, deviation over seeds", xlabel="test score"),
                    caption="Mean test score of each method, the best at the top",
                ),
                Section(
                    "Each task", "Mean test scores over the seeds.", table=task_columns(best, {"method": method_of})
                ),
            ),
            {f"test.{name}": mean_of(by_seed) for name, by_seed in ranked.items()},
        )


def mean_ranks(results: Iterable[TrialResult]) -> dict[str, float]:
    """Return each method's mean rank over tasks and seeds, among the methods that have a result there.

    Args:
        results: One result for each task, seed and method.
    """
    runs: defaultdict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for result in results:
        runs[result.trial.task, result.trial.seed][method_of(result.trial)] = result.outcome["test"]
    ranks: defaultdict[str, list[float]] = defaultdict(list)
    for scores in runs.values():
        for name, rank in zip(scores, rankdata([-score for score in scores.values()]), strict=True):
            ranks[name].append(float(rank))
    return {name: mean_of(method_ranks) for name, method_ranks in ranks.items()}
