"""Study: the gap between methods by the size of the backbone.

    gap = test score of a method − test score of full fine-tuning, on the same backbone

Lester et al. (2021), "The Power of Scale for Parameter-Efficient Prompt Tuning" (arXiv:2104.08691), figure 1: the gap
of prompt tuning closes with the size of the backbone. Ding et al. (2022), "Delta Tuning" (arXiv:2203.06904): so do the
gaps between all methods.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, final

from pydantic import Field

from continual.errors import StudyError
from continual.experiments.studies.aggregation import (
    FORMATS,
    FULL,
    RATES,
    Rates,
    best_rates,
    deviation,
    gaps_to_full,
    group_lines,
    mean_of,
    mean_outcomes,
    means_table,
    method_label,
    method_of,
    seed_means,
    sweep_trials,
    task_of,
)
from continual.experiments.studies.study import Study
from continual.experiments.studies.trial import StudyTrial, TrialBackbone, TrialResult
from continual.experiments.studies.trial_runner import TrialRunner
from continual.reports.html import Section, Table
from continual.reports.html.study_result import Result
from continual.reports.plots import line_plot
from tasks import Method

METHODS = ("lora", "adapter", "prefix", "prompt", "bitfit")
Scores = Mapping[tuple[TrialBackbone, str], float]
"""The mean test score over tasks and seeds, by backbone and method."""

GAPS = (
    "Test score less that of full fine-tuning on the same backbone, means over tasks and seeds. Change: the last "
    "backbone less the first; above 0 the gap has closed. Backbones by size; of tasks on which nothing failed."
)
RANGES = "The best method's mean test score less the worst's, full fine-tuning included."


@final
class Scale(Study):
    """Compares methods with full fine-tuning on backbones of several sizes.

    Attributes:
        backbones: Names, hub ids or folders of backbones beside the stream's own.
        methods: The methods, beside full fine-tuning.
        rates: Multiples of the learning rate; the best one on validation rows counts, for each backbone.
    """

    shows: ClassVar[str] = "whether the gap between methods closes with the size of the backbone"
    paper: ClassVar[str] = "Lester et al. 2021, arXiv:2104.08691, fig. 1; Ding et al. 2022, arXiv:2203.06904"

    backbones: tuple[str, ...] = ()
    methods: tuple[Method, ...] = Field(default=tuple(Method(name=name) for name in METHODS), min_length=1)
    rates: Rates = RATES

    def trials(self, runner: TrialRunner) -> Iterator[StudyTrial]:
        """See `Study.trials`."""
        if not set(self.backbones) - {runner.backbone.name}:
            raise StudyError(
                f"scale compares backbones, and there is only {runner.backbone.name!r}; name others, as in "
                "--set 'backbones=[bert-base-uncased]'"
            )
        for name in dict.fromkeys((runner.backbone.name, *self.backbones)):
            scaled_runner = runner.with_backbone(name)
            for trial in sweep_trials(scaled_runner, (*self.methods, FULL), rates=self.rates):
                yield replace(trial, backbone=scaled_runner.trial_backbone)

    def result(self, results: Sequence[TrialResult]) -> Result:
        """See `Study.result`."""
        best = best_rates(results)
        by_seed = seed_means(best, _backbone_and_method)
        scores = {key: mean_of(seed_scores) for key, seed_scores in by_seed.items()}
        by_method = gaps_to_full(scores)
        gaps = {(backbone, name): gap for name, of_name in by_method.items() for backbone, gap in of_name.items()}
        backbones = sorted(dict.fromkeys(backbone for backbone, _ in scores), key=lambda backbone: backbone.parameters)
        shares = mean_outcomes(best, "share", _backbone_and_method)
        rows = tuple(
            (key[0].name, key[0].parameters, key[1], shares[key], scores[key], deviation(by_seed[key]), gaps.get(key))
            for key in sorted(scores, key=lambda key: key[0].parameters)
        )
        columns = ("backbone", "backbone parameters", "method", "share", "test", "deviation", "gap")
        per_task = {"backbone": lambda trial: _backbone_of(trial).name, "task": task_of, "method": method_of}
        gap_text = "test score less that of full fine-tuning"
        return Result(
            (
                Section("Gap to full fine-tuning", GAPS, table=_gap_table(by_method, backbones)),
                _figure("Gap by size", gaps, gap_text, baseline=0.0),
                Section("Difference between methods", RANGES, table=_range_table(scores, backbones)),
                Section("Each backbone", "Deviation: over seeds.", table=Table(columns, rows, dict(FORMATS))),
                _figure("Score by size", scores, "test score"),
                Section("Each task", "Means over the seeds.", table=means_table(best, per_task, ("test",))),
            ),
            {f"gap.{name}.{backbone.name}": gap for (backbone, name), gap in gaps.items() if name != FULL.name},
        )


def _backbone_of(trial: StudyTrial) -> TrialBackbone:
    assert trial.backbone is not None
    return trial.backbone


def _backbone_and_method(trial: StudyTrial) -> tuple[TrialBackbone, str]:
    return _backbone_of(trial), method_of(trial)


def _gap_table(gaps: Mapping[str, Mapping[TrialBackbone, float]], backbones: Sequence[TrialBackbone]) -> Table:
    """Build a table of gaps with one row per method and one column per backbone, in ascending order of size."""
    names, rows = [backbone.name for backbone in backbones], []
    for method, of_method in gaps.items():
        if method != method_label(FULL):
            row = [of_method.get(backbone) for backbone in backbones]
            change = None if row[0] is None or row[-1] is None else row[-1] - row[0]
            rows.append((method, *row, change))
    return Table(("method", *names, "change"), tuple(rows), dict.fromkeys((*names, "change"), "+.3f"))


def _range_table(scores: Scores, backbones: Sequence[TrialBackbone]) -> Table:
    rows = []
    for backbone in backbones:
        of_backbone = {method: score for (name, method), score in scores.items() if name == backbone}
        best, worst = (choose(of_backbone, key=of_backbone.__getitem__) for choose in (max, min))
        rows.append((backbone.name, backbone.parameters, best, worst, of_backbone[best] - of_backbone[worst]))
    return Table(("backbone", "backbone parameters", "best", "worst", "range"), tuple(rows))


def _figure(title: str, values: Scores, up: str, *, baseline: float | None = None) -> Section:
    lines = group_lines({(name, backbone.parameters): value for (backbone, name), value in values.items()})
    x_label = "parameters of the backbone"
    figure = line_plot(
        lines, title="mean over tasks and seeds", xlabel=x_label, ylabel=up, log_x=True, baseline=baseline
    )
    return Section(title, figure=figure, caption=f"{up} by {x_label}, a line for each method")
