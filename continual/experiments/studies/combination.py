"""Study: two or three methods at once, or one after the other, against each alone, with a template and with a head.

    gain = best test score of a combination − best test score of one of its methods alone
    gap = score on the train rows − score on the test rows

Ding et al. (2022), "Delta Tuning" (arXiv:2203.06904), section 5: simultaneous and sequential combinations of prompt
tuning, BitFit and adapters, with and without templates, and the generalisation gap of each.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, permutations
from typing import Annotated, Any, ClassVar, Literal, final

from matplotlib.figure import Figure
from pydantic import Field

from continual.experiments.studies.aggregation import (
    FORMATS,
    RATES,
    Rates,
    best_rates,
    mean_of,
    means_table,
    method_label,
    method_of,
    method_of_name,
    seed_means,
    sweep_trials,
    task_of,
    without_template,
)
from continual.experiments.studies.study import Study
from continual.experiments.studies.trial import StudyTrial, TrialResult
from continual.experiments.studies.trial_runner import TrialRunner, summarize_with_gap
from continual.reports.html import Section, Table
from continual.reports.html.study_result import Result
from continual.reports.plots import bar_plot
from tasks import Method, TaskData

Combined = Annotated[tuple[Method, ...], Field(min_length=2, max_length=3)]
Answer = Literal["head", "template"]

COMBINATIONS: tuple[Combined, ...] = (
    (method_of_name("prefix", length=16), method_of_name("parallel_adapter", size=64)),  # together they are `mam`
    (method_of_name("adapter"), method_of_name("bitfit")),  # together they are `adapter_bitfit`
    (method_of_name("lora"), method_of_name("bitfit")),
    (method_of_name("lora"), method_of_name("prefix")),
    (method_of_name("adapter"), method_of_name("bitfit"), method_of_name("prompt")),
)


@final
class Combination(Study):
    """Compares combinations of two or three methods, trained together and in sequence, with each alone.

    A combination has the same epochs as one method alone; in sequence, the methods share them.

    Attributes:
        combinations: The combinations of two or three methods.
        answers: What answers: the task's template, on tasks that have one, and a head in its place.
        rates: Multiples of the learning rate; the best one on validation rows counts.
    """

    shows: ClassVar[str] = "two or three methods, together and in sequence, against each alone"
    paper: ClassVar[str] = "Ding et al. 2022, arXiv:2203.06904, section 5"

    combinations: tuple[Combined, ...] = Field(default=COMBINATIONS, min_length=1)
    answers: tuple[Answer, ...] = Field(default=("head", "template"), min_length=1)
    rates: Rates = RATES

    def trials(self, runner: TrialRunner) -> Iterator[StudyTrial]:
        """See `Study.trials`."""
        methods = {method_label(method): method for combined in self.combinations for method in _all_variants(combined)}
        for answer in self.answers:
            tasks = tuple(_tasks_answered_by(answer, runner.tasks))
            runner_of_tasks = replace(runner, tasks=tasks)
            yield from sweep_trials(runner_of_tasks, methods.values(), rates=self.rates, extra={"answer": answer})

    def measure(self, runner: TrialRunner, trial: StudyTrial) -> Mapping[str, Any]:
        """See `Study.measure`."""
        return summarize_with_gap(*runner.train(trial))

    def result(self, results: Sequence[TrialResult]) -> Result:
        """See `Study.result`."""
        best = best_rates(results)
        rows = {
            (_title(combined), answer): (scores, gaps)
            for combined in self.combinations
            for answer in self.answers
            if (scores := _scores_by_way(combined, answer, best)) and (gaps := _gaps_by_way(combined, answer, best))
        }
        gains = {key: max(scores[way] for way in WAYS[1:]) - scores[WAYS[0]] for key, (scores, _) in rows.items()}
        score_rows = tuple((*key, *scores.values(), gains[key]) for key, (scores, _) in rows.items())
        gap_rows = tuple((*key, *gaps.values()) for key, (_, gaps) in rows.items())
        values = ("parameters", "share", "train", "test", "gap")
        by_method = {"answers": _answer_of, "method": method_of}
        by_task = {"task": task_of, **by_method}
        return Result(
            (
                Section(
                    "Combinations of methods",
                    SCORES,
                    table=Table(("methods", "answers", *WAYS, "gain"), score_rows, dict(FORMATS)),
                    figure=_bars({key: scores for key, (scores, _) in rows.items()}, "test score"),
                    caption="Best mean test score of methods alone, together, and one after the other",
                ),
                Section(
                    "Generalisation gap",
                    GAPS,
                    table=Table(("methods", "answers", *WAYS), gap_rows, dict.fromkeys(WAYS, "+.3f")),
                    figure=_bars({key: gaps for key, (_, gaps) in rows.items()}, "train score less test score"),
                    caption="Mean score on train rows less that on test rows, alone, together, and in sequence",
                ),
                Section("Each method", "Means over tasks and seeds.", table=means_table(best, by_method, values)),
                Section("Each task", "Means over seeds.", table=means_table(best, by_task, values)),
            ),
            {f"gain.{methods}.{answer}": gain for (methods, answer), gain in gains.items()},
        )


WAYS = ("alone", "together", "in sequence")
SCORES = (
    "Test score, mean over tasks and seeds: of the best method alone, of the best set trained together, of the best "
    "sequence. Gain: the best combination less the best alone. Of tasks on which nothing failed."
)
GAPS = "Score on the train rows less that on the test rows: means over all methods alone, all sets, all sequences."


def combination_variants(combined: Combined) -> dict[str, tuple[Method, ...]]:
    """Return the variants of a combination: each method alone, each set trained together, and each sequence of all.

    >>> [len(methods) for methods in combination_variants(COMBINATIONS[-1]).values()]
    [3, 4, 6]
    """
    sets = (chosen for size in range(2, len(combined) + 1) for chosen in combinations(combined, size))
    together = tuple(_composed("union", chosen) for chosen in sets)
    in_sequence = tuple(_composed("sequential", order) for order in permutations(combined))
    return dict(zip(WAYS, (combined, together, in_sequence), strict=True))


def _composed(name: str, parts: Sequence[Method]) -> Method:
    return method_of_name(name, parts=[part.model_dump(mode="json") for part in parts])


def _all_variants(combined: Combined) -> list[Method]:
    return [method for methods in combination_variants(combined).values() for method in methods]


def _tasks_answered_by(answer: Answer, tasks: Sequence[TaskData]) -> Iterator[TaskData]:
    """Yield the tasks in the form that answers by a head, or those with a template."""
    for data in tasks:
        if answer == "head":
            yield without_template(data)
        elif data.spec.template is not None:
            yield data


def _answer_of(trial: StudyTrial) -> str:
    return str(trial.extra["answer"])


def _title(combined: Combined) -> str:
    return ", ".join(map(method_label, combined))


def _means_by_way(
    combined: Combined, answer: Answer, results: Sequence[TrialResult], *, value: str
) -> dict[str, list[float]]:
    """Return the mean outcomes over tasks and seeds of all variants, by way; empty where a variant has none."""
    labels = {way: [method_label(method) for method in ms] for way, ms in combination_variants(combined).items()}
    names = {name for way_names in labels.values() for name in way_names}
    of_combination = [r for r in results if _answer_of(r.trial) == answer and method_of(r.trial) in names]
    means = {name: mean_of(by_seed) for name, by_seed in seed_means(of_combination, method_of, value=value).items()}
    return {way: [means[name] for name in ns] for way, ns in labels.items()} if names == means.keys() else {}


def _scores_by_way(combined: Combined, answer: Answer, results: Sequence[TrialResult]) -> dict[str, float]:
    means = _means_by_way(combined, answer, results, value="test")
    return {way: max(scores) for way, scores in means.items()}


def _gaps_by_way(combined: Combined, answer: Answer, results: Sequence[TrialResult]) -> dict[str, float]:
    means = _means_by_way(combined, answer, results, value="gap")
    return {way: mean_of(gaps) for way, gaps in means.items()}


def _bars(rows: Mapping[tuple[str, str], Mapping[str, float]], up: str) -> Figure:
    """Draw a group of bars for every combination; what answers is named where it differs."""
    several = len({answer for _, answer in rows}) > 1
    groups = {f"{methods} ({answer})" if several else methods: bars for (methods, answer), bars in rows.items()}
    return bar_plot(groups, title="mean over tasks and seeds", ylabel=up)
