"""The base of studies of one design choice: methods in groups, each against the first of its group.

    gain = test score of a design − test score of the first design of its group

He et al. (2022), "Towards a Unified View of Parameter-Efficient Transfer Learning" (arXiv:2110.04366), section 4,
change one dimension of the design at a time in this way, at equal numbers of parameters.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from continual.backbones.backbone import Backbone
from continual.deltas import init_values, method_settings
from continual.errors import StudyError
from continual.experiments.studies.aggregation import (
    FORMATS,
    RATES,
    Rates,
    best_rates,
    deviation,
    mean_of,
    mean_outcomes,
    method_label,
    method_of,
    method_of_name,
    seed_means,
    sweep_trials,
    task_columns,
)
from continual.experiments.studies.study import Study
from continual.experiments.studies.trial import StudyTrial, TrialResult
from continual.experiments.studies.trial_runner import TrialRunner
from continual.kinds import kind_of_spec
from continual.reports.html import Section, Table
from continual.reports.html.study_result import Result
from continual.reports.plots import dot_plot
from tasks import Method

Design = tuple[str, str]
"""A group, and a design in it."""
SeedScores = Mapping[Design, Sequence[float]]
"""The mean test score over tasks of every seed, by design."""

TEXT = (
    "Means over tasks and seeds, of tasks on which no design failed; deviation: over seeds. Gain: less the first "
    "design of the group."
)
INITIAL_SCALE = 1e-2  # of every adapter that is compared with a sequential one, whose default it is


class DesignComparison(Study):
    """A study of one design choice: methods in groups, each compared with the first one of its group.

    Attributes:
        axes: What the groups are, and what the designs are.
        rates: Multiples of the learning rate; the best one on validation rows counts.
    """

    axes: ClassVar[tuple[str, str]]

    rates: Rates = RATES

    @abstractmethod
    def designs(self, backbone: Backbone) -> Mapping[str, Mapping[str, Method]]:
        """Return the methods by group and design, of about equal numbers of parameters on this backbone in a group.

        Raises:
            InputError: The backbone lacks a site, or is too small.
        """

    def trials(self, runner: TrialRunner) -> Iterator[StudyTrial]:
        """See `Study.trials`."""
        for data in runner.tasks:
            # A task that generates has its edits in the decoder too, so that its sizes differ.
            backbone = replace(runner.backbone, generates=kind_of_spec(data.spec).generates)
            for group, designs in self.designs(backbone).items():
                for design, method in designs.items():
                    extra = {"group": group, "design": design, "against": next(iter(designs))}
                    yield from sweep_trials(replace(runner, tasks=(data,)), [method], rates=self.rates, extra=extra)

    def result(self, results: Sequence[TrialResult]) -> Result:
        """See `Study.result`."""
        best = best_rates(results)
        scores = seed_means(best, _design_of)
        gains = {design: _gains(scores, best, design) for design in scores}
        columns: Mapping[str, Callable[[StudyTrial], Any]] = {
            self.axes[0]: lambda trial: trial.extra["group"],
            self.axes[1]: lambda trial: trial.extra["design"],
        }
        methods = {**columns, "method": method_of}
        return Result(
            (
                Section(
                    "Score of each design",
                    TEXT,
                    table=self._score_table(best, scores, gains),
                    figure=dot_plot(_dots(scores), title="mean over tasks, deviation over seeds", xlabel="test score"),
                    caption=f"Mean test score by {self.axes[0]} and {self.axes[1]}",
                ),
                *self._choice_sections(scores),
                Section("Each task", "Mean test scores over the seeds.", table=task_columns(best, columns)),
                Section("Methods", "What each design is.", table=_distinct_rows(best, methods)),
            ),
            {f"gain.{group}.{design}": mean_of(gain) for (group, design), gain in gains.items() if gain},
        )

    def _score_table(
        self, best: Sequence[TrialResult], scores: SeedScores, gains: Mapping[Design, Sequence[float]]
    ) -> Table:
        sizes, shares = (mean_outcomes(best, value, _design_of) for value in ("parameters", "share"))
        rows = tuple(
            (
                *design,
                sizes[design],
                shares[design],
                mean_of(by_seed),
                deviation(by_seed),
                mean_of(gains[design]) if gains[design] else None,
            )
            for design, by_seed in scores.items()
        )
        return Table((*self.axes, "parameters", "share", "test", "deviation", "gain"), rows, dict(FORMATS))

    def _choice_sections(self, scores: SeedScores) -> list[Section]:
        """Return the mean over the other axis of each group and each design; nothing where a design failed."""
        choices = [tuple(dict.fromkeys(design[axis] for design in scores)) for axis in (0, 1)]
        if not scores or len(scores) != len(choices[0]) * len(choices[1]):
            return []
        rows = []
        for axis, heading in enumerate(self.axes):
            for choice in choices[axis]:
                of_choice = [by_seed for design, by_seed in scores.items() if design[axis] == choice]
                by_seed = [mean_of(seed_scores) for seed_scores in zip(*of_choice, strict=True)]
                rows.append((heading, choice, mean_of(by_seed), deviation(by_seed)))
        text = f"Mean test score of each {self.axes[0]} over all of {self.axes[1]}, and the other way round."
        return [Section("Each choice", text, table=Table(("of", "choice", "test", "deviation"), tuple(rows)))]


def sequential_adapter(block: str, size: int) -> Method:
    """Return a bottleneck of this size that reads the output of a block, `attn` or `ffn`."""
    return _adapter("adapter_pfeiffer", block, size, reads="output")


def parallel_adapter(block: str, size: int) -> Method:
    """Return a bottleneck of this size that reads what a block reads, with the same start as the sequential one."""
    return _adapter("parallel_adapter", block, size, scale=1.0)


def _adapter(name: str, block: str, size: int, **settings: Any) -> Method:
    return method_of_name(name, size=size, blocks=[block], initial_scale=INITIAL_SCALE, **settings)


def parameter_count(backbone: Backbone, method: Method) -> int:
    """Return the number of values of a method's edits on a backbone."""
    return sum(value.numel() for value in init_values(backbone, method_settings(method), seed=0).values())


def method_near(backbone: Backbone, of_size: Callable[[int], Method], parameters: float) -> Method:
    """Return the method whose number of parameters is nearest to a budget.

    Args:
        backbone: The backbone.
        of_size: The method by size; its number of parameters has to be affine in the size.
        parameters: The budget.

    Raises:
        StudyError: The budget is less than a half of a unit of the size.
    """
    smallest, next_smallest = (parameter_count(backbone, of_size(size)) for size in (1, 2))
    size = 1 + round((parameters - smallest) / (next_smallest - smallest))
    if size < 1:
        raise StudyError(
            f"{parameters:,.0f} parameters are too few on backbone {backbone.name!r}: {method_label(of_size(1))} has "
            f"{smallest:,}, {smallest / backbone.parameter_count:.3%} of the backbone's; allow more"
        )
    return of_size(size)


def _distinct_rows(results: Sequence[TrialResult], columns: Mapping[str, Callable[[StudyTrial], Any]]) -> Table:
    """Build a table of the distinct rows of columns."""
    rows = dict.fromkeys(tuple(part(result.trial) for part in columns.values()) for result in results)
    return Table(tuple(columns), tuple(rows))


def _design_of(trial: StudyTrial) -> Design:
    return trial.extra["group"], trial.extra["design"]


def _gains(scores: SeedScores, results: Sequence[TrialResult], design: Design) -> list[float]:
    """Return the gain of a design over the first of its group for every seed; empty where that one failed."""
    against = next(result.trial.extra["against"] for result in results if _design_of(result.trial) == design)
    first = scores.get((design[0], against), ())
    return [score - reference for score, reference in zip(scores[design], first, strict=False)]


def _dots(scores: SeedScores) -> dict[str, dict[str, tuple[float, float | None]]]:
    dots: dict[str, dict[str, tuple[float, float | None]]] = {}
    for (group, design), by_seed in scores.items():
        dots.setdefault(group, {})[design] = mean_of(by_seed), deviation(by_seed)
    return dots
