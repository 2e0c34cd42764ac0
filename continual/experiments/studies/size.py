"""How much is lost by changing few parameters: score against size, full fine-tuning being 0.

Houlsby et al. (2019), "Parameter-Efficient Transfer Learning for NLP" (arXiv:1902.00751), figure 1: every score less
that of full fine-tuning on the same task, and its 20th, 50th and 80th percentile over the tasks.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, final

from continual.experiments.studies.aggregation import (
    RATES,
    Rates,
    best_rates,
    mean_outcomes,
    method_label,
    method_of,
    percentiles,
    sweep_trials,
    task_and_method,
)
from continual.experiments.studies.study import Study
from continual.experiments.studies.trial import StudyTrial, TrialResult
from continual.experiments.studies.trial_runner import TrialRunner, summarize
from continual.reports.html import Section, Table
from continual.reports.html.study_result import Result
from continual.reports.plots import Line, line_plot
from tasks import Method

FULL = Method(name="full")
RANKS, WIDTHS = (1, 2, 4, 8, 16, 32, 64), (2, 4, 8, 16, 32, 64, 128)


def _sizes(layers: int) -> tuple[Method, ...]:
    """What is swept where nothing is said: ranks of LoRA, sizes of adapters, and how many layers are fine-tuned."""
    swept = {"lora": ("rank", RANKS), "adapter": ("size", WIDTHS), "last_layer": ("count", range(1, layers + 1))}
    return tuple(
        Method.model_validate({"name": name, setting: size})
        for name, (setting, sizes) in swept.items()
        for size in sizes
    )


@final
class Size(Study):
    """methods: what is compared with full fine-tuning, those of one name as one line; by default LoRA, adapters and the
    last layers in many sizes · rates: multiples of the learning rate, of which the best on validation rows counts.
    """

    shows: ClassVar[str] = "score against trained parameters, full fine-tuning = 0"
    paper: ClassVar[str] = "Houlsby et al. 2019, arXiv:1902.00751, fig. 1"

    methods: tuple[Method, ...] = ()
    rates: Rates = RATES

    def trials(self, bench: TrialRunner) -> Iterable[StudyTrial]:
        return sweep_trials(bench, (*(self.methods or _sizes(bench.backbone.num_layers)), FULL), rates=self.rates)

    def measure(self, bench: TrialRunner, trial: StudyTrial) -> Mapping[str, Any]:
        return summarize(*bench.train(trial))

    def result(self, found: Sequence[TrialResult]) -> Result:
        best = best_rates(found)
        gaps, sizes = (
            gaps_to_full(mean_outcomes(best, "test", task_and_method)),
            mean_outcomes(best, "parameters", method_of),
        )
        shares, scores = mean_outcomes(best, "share", method_of), mean_outcomes(best, "test", task_and_method)
        spread = {name: percentiles(list(own.values())) for name, own in gaps.items() if own}
        table = Table(
            ("method", "parameters", "share", "20th", "median", "80th", "tasks"),
            tuple((name, round(sizes[name]), shares[name], *own, len(gaps[name])) for name, own in spread.items()),
            {"share": ".3%", "20th": "+.3f", "median": "+.3f", "80th": "+.3f"},
        )
        tasks = tuple(dict.fromkeys(task for task, _ in scores))
        each = tuple((name, *(scores.get((task, name)) for task in tasks)) for name in sizes)
        return Result(
            (
                Section("Score less that of full fine-tuning", TEXT, table=table),
                Section(
                    "Score against size",
                    figure=line_plot(
                        _lines(best, sizes, spread),
                        title="score less that of full fine-tuning",
                        across="trained parameters of a task, without the head",
                        up="median over tasks, 20th to 80th percentile",
                        logarithmic=True,
                        level=0.0,
                    ),
                    caption="Score less that of full fine-tuning against the number of trained parameters",
                ),
                Section("Test score of each task", "Mean over the seeds.", table=Table(("method", *tasks), each)),
            ),
            {f"median_gap.{name}": own[1] for name, own in spread.items()},
        )


TEXT = "Over the tasks: 20th percentile, median and 80th percentile of the test score less that of full fine-tuning."


def gaps_to_full(scores: Mapping[tuple[str, str], float]) -> dict[str, dict[str, float]]:
    """For each method and task, the score less that of full fine-tuning; tasks that lack the latter are left out.

    >>> gaps_to_full({("mood", "lora"): 0.5, ("mood", "full"): 0.75})
    {'lora': {'mood': -0.25}, 'full': {'mood': 0.0}}
    """
    gaps: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for (task, method), score in scores.items():
        if (full := scores.get((task, method_label(FULL)))) is not None:
            gaps[method][task] = score - full
    return dict(gaps)


def _lines(
    found: Sequence[TrialResult], sizes: Mapping[str, float], spread: Mapping[str, tuple[float, float, float]]
) -> dict[str, Line]:
    """A line for each name of a method, through its sizes in order."""
    families = {method_of(one.trial): one.trial.candidate.method.name for one in found}
    lines = {}
    for family in dict.fromkeys(families.values()):
        own = sorted((name for name in spread if families[name] == family), key=lambda name: sizes[name])
        if own:
            low, middle, high = zip(*(spread[name] for name in own), strict=True)
            lines[family] = Line([sizes[name] for name in own], middle, low, high)
    return lines
