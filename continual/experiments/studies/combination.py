"""Study: two methods at once, or one after the other, against each alone.

Ding et al. (2022), "Delta Tuning" (arXiv:2203.06904): simultaneous and sequential combinations.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, final

from pydantic import Field

from continual.experiments.studies.aggregation import (
    RATES,
    Rates,
    best_rates,
    mean_of,
    means_table,
    method_label,
    method_of,
    sweep_trials,
    task_of,
)
from continual.experiments.studies.study import Study
from continual.experiments.studies.trial import StudyTrial, TrialResult
from continual.experiments.studies.trial_runner import TrialRunner, summarize
from continual.reports.html import Section, Table
from continual.reports.html.study_result import Result
from continual.reports.plots import bar_plot
from tasks import Method

Pair = tuple[Method, Method]

PAIRS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"name": "prefix", "length": 16}, {"name": "parallel_adapter", "size": 64}),  # together they are `mam`
    ({"name": "adapter"}, {"name": "bitfit"}),  # together they are `adapter_bitfit`
    ({"name": "lora"}, {"name": "bitfit"}),
    ({"name": "lora"}, {"name": "prefix"}),
)


@final
class Combination(Study):
    """Compares pairs of methods, trained together and in sequence, with each alone.

    A combination has the same epochs as one method alone; in sequence, the two methods share them.

    Attributes:
        pairs: The pairs of methods.
        rates: Multiples of the learning rate; the best one on validation rows counts.
    """

    shows: ClassVar[str] = "methods together and one after the other, against each alone"
    paper: ClassVar[str] = "Ding et al. 2022, arXiv:2203.06904, combinations"

    pairs: tuple[Pair, ...] = Field(
        default=tuple((Method.model_validate(a), Method.model_validate(b)) for a, b in PAIRS), min_length=1
    )
    rates: Rates = RATES

    def trials(self, runner: TrialRunner) -> Iterable[StudyTrial]:
        """See `Study.trials`."""
        methods = {method_label(method): method for pair in self.pairs for method in pair_variants(pair).values()}
        return sweep_trials(runner, methods.values(), rates=self.rates)

    def measure(self, runner: TrialRunner, trial: StudyTrial) -> Mapping[str, Any]:
        """See `Study.measure`."""
        return summarize(*runner.train(trial))

    def result(self, results: Sequence[TrialResult]) -> Result:
        """See `Study.result`."""
        best = best_rates(results)
        scores = {
            (result.trial.task, result.trial.seed, method_of(result.trial)): result.outcome["test"] for result in best
        }
        scores_by_pair = {
            (method_label(a), method_label(b)): row for a, b in self.pairs if (row := _pair_scores((a, b), scores))
        }
        rows = tuple((*pair, *row) for pair, row in scores_by_pair.items())
        columns = ("first", "second", *pair_variants(self.pairs[0]), "gain")
        bars = {" and ".join(pair): dict(zip(columns[2:-1], row, strict=False)) for pair, row in scores_by_pair.items()}
        values, columns_per_task = ("parameters", "share", "test"), {"task": task_of, "method": method_of}
        return Result(
            (
                Section(
                    "Two methods",
                    TEXT,
                    table=Table(columns, rows, {"gain": "+.3f"}),
                    figure=bar_plot(bars, title="mean over tasks and seeds", ylabel="test score"),
                    caption="Mean test score of two methods, each alone, together, and one after the other",
                ),
                Section("Each method", "Mean test score.", table=means_table(best, {"method": method_of}, values)),
                Section("Each task", "Means over the seeds.", table=means_table(best, columns_per_task, values)),
            ),
            {f"gain.{first}, {second}": row[-1] for (first, second), row in scores_by_pair.items()},
        )


TEXT = "Mean test scores over tasks and seeds. Gain: the best combination less the better of the two alone."


def pair_variants(pair: Pair) -> dict[str, Method]:
    """Return the five variants of a pair by name: each alone, both at once, and in either sequence.

    >>> list(pair_variants((Method(name="lora"), Method(name="bitfit"))))
    ['first alone', 'second alone', 'together', 'first, then second', 'second, then first']
    """
    first, second = pair

    def combined(name: str, *parts: Method) -> Method:
        return Method.model_validate({"name": name, "parts": [part.model_dump(mode="json") for part in parts]})

    return {
        "first alone": first,
        "second alone": second,
        "together": combined("union", first, second),
        "first, then second": combined("sequential", first, second),
        "second, then first": combined("sequential", second, first),
    }


def _pair_scores(pair: Pair, scores: Mapping[tuple[str, int, str], float]) -> tuple[float, ...] | None:
    """Return each variant's mean score over the tasks and seeds that have all variants, and the gain."""
    names = [method_label(method) for method in pair_variants(pair).values()]
    runs = {(task, seed) for task, seed, _ in scores}
    complete_runs = [run for run in sorted(runs) if all((*run, name) in scores for name in names)]
    if not complete_runs:
        return None
    first, second, *combined = [mean_of(scores[(*run, name)] for run in complete_runs) for name in names]
    return first, second, *combined, max(combined) - max(first, second)
