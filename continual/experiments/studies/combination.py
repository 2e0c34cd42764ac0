"""Whether two methods together are better than one: at once, or one after the other, against each alone.

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
    """pairs: the methods that are combined · rates: multiples of the learning rate, of which the best on validation
    rows counts. A combination has the same epochs as one method alone; one after the other, they share them.
    """

    shows: ClassVar[str] = "methods together and one after the other, against each alone"
    paper: ClassVar[str] = "Ding et al. 2022, arXiv:2203.06904, combinations"

    pairs: tuple[Pair, ...] = Field(
        default=tuple((Method.model_validate(a), Method.model_validate(b)) for a, b in PAIRS), min_length=1
    )
    rates: Rates = RATES

    def trials(self, bench: TrialRunner) -> Iterable[StudyTrial]:
        methods = {method_label(method): method for pair in self.pairs for method in pair_variants(pair).values()}
        return sweep_trials(bench, methods.values(), rates=self.rates)

    def measure(self, bench: TrialRunner, trial: StudyTrial) -> Mapping[str, Any]:
        return summarize(*bench.train(trial))

    def result(self, found: Sequence[TrialResult]) -> Result:
        best = best_rates(found)
        scores = {(one.trial.task, one.trial.seed, method_of(one.trial)): one.outcome["test"] for one in best}
        compared = {
            (method_label(a), method_label(b)): row for a, b in self.pairs if (row := _compared((a, b), scores))
        }
        rows = tuple((*pair, *row) for pair, row in compared.items())
        columns = ("first", "second", *pair_variants(self.pairs[0]), "gain")
        bars = {" and ".join(pair): dict(zip(columns[2:-1], row, strict=False)) for pair, row in compared.items()}
        values, each = ("parameters", "share", "test"), {"task": task_of, "method": method_of}
        return Result(
            (
                Section(
                    "Two methods",
                    TEXT,
                    table=Table(columns, rows, {"gain": "+.3f"}),
                    figure=bar_plot(bars, title="mean over tasks and seeds", up="test score"),
                    caption="Mean test score of two methods, each alone, together, and one after the other",
                ),
                Section("Each method", "Mean test score.", table=means_table(best, {"method": method_of}, values)),
                Section("Each task", "Means over the seeds.", table=means_table(best, each, values)),
            ),
            {f"gain.{first}, {second}": row[-1] for (first, second), row in compared.items()},
        )


TEXT = "Mean test scores over tasks and seeds. Gain: the best combination less the better of the two alone."


def pair_variants(pair: Pair) -> dict[str, Method]:
    """Each alone, both at once, and one after the other.

    >>> list(ways((Method(name="lora"), Method(name="bitfit"))))
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


def _compared(pair: Pair, scores: Mapping[tuple[str, int, str], float]) -> tuple[float, ...] | None:
    """The mean score of each way over the tasks and seeds for which all of them are there, and the gain."""
    names = [method_label(method) for method in pair_variants(pair).values()]
    runs = {(task, seed) for task, seed, _ in scores}
    whole = [run for run in sorted(runs) if all((*run, name) in scores for name in names)]
    if not whole:
        return None
    first, second, *combined = [mean_of(scores[(*run, name)] for run in whole) for name in names]
    return first, second, *combined, max(combined) - max(first, second)
