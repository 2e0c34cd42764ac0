"""What studies do with many trials: choose the best learning rate, average over seeds, name methods."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import Field

from continual.experiments.studies.trial import StudyTrial, TrialResult
from continual.experiments.studies.trial_runner import TrialRunner
from continual.reports.html import Table
from continual.reports.plots import Line
from continual.reports.stream_measures import mean
from continual.training.method_search import SearchCandidate
from tasks import Method, TaskData

Key = TypeVar("Key", bound=Hashable)
Number = TypeVar("Number", int, float)
Rates = Annotated[tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], Field(min_length=1)]

RATES: Rates = (0.1, 1.0)  # multiples of the stream's learning rate: what changes whole weights needs a lower one
FORMATS = {"parameters": ",.0f", "share": ".3%", "gap": "+.3f"}
PERCENTILES = (20, 50, 80)  # those of Houlsby et al. (2019), figure 1


def sweep_trials(
    bench: TrialRunner, methods: Iterable[Method], *, rates: Sequence[float], epochs: int | None = None, **more: Any
) -> Iterator[StudyTrial]:
    """A trial of every task with every seed by every method at every learning rate."""
    chosen = list(methods)
    for data in bench.tasks:
        for seed in bench.seeds:
            for method in chosen:
                for rate in rates:
                    yield make_trial(data, seed, method, rate=rate, epochs=epochs, **more)


def make_trial(
    data: TaskData, seed: int, method: Method | None, *, rate: float = 1.0, epochs: int | None = None, **more: Any
) -> StudyTrial:
    """A trial by a method, or by the task's own, at a multiple of the task's learning rate.

    epochs: in place of the task's own.
    """
    spec = data.spec
    assert spec.budget  # what `Stream.resolved` fills in
    assert spec.method
    budget = spec.budget if epochs is None else spec.budget.model_copy(update={"epochs": epochs})
    return StudyTrial(data, seed, SearchCandidate(method or spec.method, rate * budget.learning_rate), budget, **more)


def best_rates(found: Iterable[TrialResult]) -> list[TrialResult]:
    """Of the trials that differ in nothing but the learning rate, the best on validation rows."""
    best: dict[str, TrialResult] = {}
    for one in found:
        key = replace(one.trial, candidate=replace(one.trial.candidate, learning_rate=0.0)).key
        if key not in best or one.outcome["validation"] > best[key].outcome["validation"]:
            best[key] = one
    return list(best.values())


def mean_outcomes(found: Iterable[TrialResult], value: str, by: Callable[[StudyTrial], Key]) -> dict[Key, float]:
    """The mean outcome of the trials that are the same by `by`, in the order in which they first appear."""
    values: defaultdict[Key, list[float]] = defaultdict(list)
    for one in found:
        values[by(one.trial)].append(one.outcome[value])
    return {key: mean_of(own) for key, own in values.items()}


def means_table(
    found: Sequence[TrialResult], by: Mapping[str, Callable[[StudyTrial], Any]], values: Sequence[str]
) -> Table:
    """A row of mean outcomes for the trials that are the same. by: what rows are told apart by, under its heading."""
    means = [mean_outcomes(found, value, lambda trial: tuple(own(trial) for own in by.values())) for value in values]
    rows = tuple((*key, *(mean[key] for mean in means)) for key in means[0])
    return Table((*by, *(value.replace("_", " ") for value in values)), rows, dict(FORMATS))


def group_lines(means: Mapping[tuple[str, Number], float]) -> dict[str, Line]:
    """A line for each first half of a key, through its second halves in order.

    >>> lines_of({("lora", 300): 0.8, ("lora", 100): 0.7})
    {'lora': Line(x=[100, 300], y=[0.7, 0.8], low=None, high=None)}
    """
    points: defaultdict[str, list[tuple[Number, float]]] = defaultdict(list)
    for (name, x), y in means.items():
        points[name].append((x, y))
    own = {name: sorted(found) for name, found in points.items()}
    return {name: Line([x for x, _ in found], [y for _, y in found]) for name, found in own.items()}


def task_of(trial: StudyTrial) -> str:
    return trial.task


def method_of(trial: StudyTrial) -> str:
    return method_label(trial.candidate.method)


def task_and_method(trial: StudyTrial) -> tuple[str, str]:
    """Task and method."""
    return task_of(trial), method_of(trial)


def mean_of(values: Iterable[float]) -> float:
    """The mean of something."""
    found = mean(values)
    assert found is not None
    return found


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The 20th, 50th and 80th percentile, linearly interpolated.

    >>> percentiles([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    (1.0, 2.5, 4.0)
    """
    low, middle, high = np.percentile(values, PERCENTILES).tolist()
    return low, middle, high


def method_label(method: Method) -> str:
    """A method as tables and figures call it.

    >>> named(Method.model_validate({"name": "union", "parts": ["bitfit", {"name": "lora", "rank": 2}]}))
    'bitfit + lora rank 2'
    """
    settings = dict(method.settings)
    parts = [method_label(Method.model_validate(part)) for part in settings.pop("parts", ())]
    between = {"union": " + ", "sequential": ", then "}.get(method.name, " ")
    shown = between.join(parts) or method.name
    return " ".join((shown, *(f"{key} {_plain(value)}" for key, value in settings.items())))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key} {_plain(own)}" for key, own in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list | tuple) else f"{value}"
