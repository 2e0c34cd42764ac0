"""Build and aggregate trials: sweeps, the best learning rate, means over seeds, names of methods."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from statistics import stdev
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import Field

from continual.errors import StudyError
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

RATES: Rates = (0.1, 1.0)  # multiples of the stream's learning rate: methods that train whole weights need a lower one
FULL = Method(name="full")
FORMATS = {"parameters": ",.0f", "share": ".3%", "gap": "+.3f", "gain": "+.3f"}
PERCENTILES = (20, 50, 80)  # as in Houlsby et al. (2019), figure 1


def sweep_trials(
    runner: TrialRunner,
    methods: Iterable[Method],
    *,
    rates: Sequence[float],
    epochs: int | None = None,
    rows: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Iterator[StudyTrial]:
    """Yield a trial of every task with every seed, method and learning rate.

    Args:
        runner: The tasks and seeds.
        methods: The methods.
        rates: Multiples of each task's learning rate.
        epochs: As in `make_trial`.
        rows: As in `StudyTrial`.
        extra: As in `StudyTrial`.
    """
    method_list = list(methods)
    for data in runner.tasks:
        for seed in runner.seeds:
            for method in method_list:
                for rate in rates:
                    yield make_trial(data, seed, method, rate=rate, epochs=epochs, rows=rows, extra=extra)


def require_templates(tasks: Iterable[TaskData]) -> None:
    """Raise StudyError if a task has no template."""
    if without := [data.spec.name for data in tasks if data.spec.template is None]:
        raise StudyError(
            f"tasks without a template: {', '.join(without)}. Give each one, as in "
            "template: {text: '{{ text }} It was {{ mask }}.', words: {bad: awful, good: great}}, or leave it out "
            "with --tasks; the backbone has to be a language model, such as roberta-base, gpt2 or t5-small"
        )


def make_trial(
    data: TaskData,
    seed: int,
    method: Method | None,
    *,
    rate: float = 1.0,
    epochs: int | None = None,
    rows: int | None = None,
    shots: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> StudyTrial:
    """Build a trial of one task.

    Args:
        data: The task and its rows.
        seed: The seed.
        method: The method; None takes the task's own.
        rate: A multiple of the task's learning rate.
        epochs: The number of epochs; None takes the task's own.
        rows: As in `StudyTrial`.
        shots: As in `StudyTrial`.
        extra: As in `StudyTrial`.
    """
    spec = data.spec
    assert spec.budget  # what `Stream.resolved` fills in
    assert spec.method
    budget = spec.budget if epochs is None else spec.budget.model_copy(update={"epochs": epochs})
    candidate = SearchCandidate(method or spec.method, rate * budget.learning_rate)
    return StudyTrial(data, seed, candidate, budget, rows=rows, shots=shots, extra=extra or {})


def without_template(data: TaskData) -> TaskData:
    """Return the task without its template, so that a head answers it."""
    return replace(data, spec=data.spec.model_copy(update={"template": None}))


def best_rates(results: Iterable[TrialResult]) -> list[TrialResult]:
    """Keep, of results that differ only in the learning rate, the best one on validation rows.

    Of equal scores, the lower validation loss is better; trials of earlier releases have none.
    """
    best: dict[str, TrialResult] = {}
    for result in results:
        key = replace(result.trial, candidate=replace(result.trial.candidate, learning_rate=0.0)).key
        if key not in best or _quality(result) > _quality(best[key]):
            best[key] = result
    return list(best.values())


def _quality(result: TrialResult) -> tuple[float, float]:
    loss = result.outcome.get("validation_loss")
    return result.outcome["validation"], -inf if loss is None else -loss


def mean_outcomes(results: Iterable[TrialResult], value: str, by: Callable[[StudyTrial], Key]) -> dict[Key, float]:
    """Average an outcome over the results with equal keys.

    Args:
        results: The results.
        value: The name of the outcome.
        by: Returns a trial's key.

    Returns:
        The means by key, in the order in which the keys first appear.
    """
    values: defaultdict[Key, list[float]] = defaultdict(list)
    for result in results:
        values[by(result.trial)].append(result.outcome[value])
    return {key: mean_of(outcomes) for key, outcomes in values.items()}


def means_table(
    results: Sequence[TrialResult], by: Mapping[str, Callable[[StudyTrial], Any]], values: Sequence[str]
) -> Table:
    """Build a table of mean outcomes with one row per group of results.

    Args:
        results: The results.
        by: The columns that identify a group: by heading, a function of a trial.
        values: The names of the averaged outcomes.
    """
    means = [
        mean_outcomes(results, value, lambda trial: tuple(key_part(trial) for key_part in by.values()))
        for value in values
    ]
    rows = tuple((*key, *(mean[key] for mean in means)) for key in means[0])
    return Table((*by, *(value.replace("_", " ") for value in values)), rows, dict(FORMATS))


def task_columns(results: Sequence[TrialResult], by: Mapping[str, Callable[[StudyTrial], Any]]) -> Table:
    """Build a table of mean test scores with one row per group of results and one column per task.

    Args:
        results: The results.
        by: The columns that identify a group, as in `means_table`.
    """

    def key_of(trial: StudyTrial) -> tuple[Any, ...]:
        return tuple(key_part(trial) for key_part in by.values())

    scores = mean_outcomes(results, "test", lambda trial: (key_of(trial), trial.task))
    keys, tasks = dict.fromkeys(key for key, _ in scores), dict.fromkeys(task for _, task in scores)
    rows = tuple((*key, *(scores.get((key, task)) for task in tasks)) for key in keys)
    return Table((*by, *tasks), rows)


def seed_means(
    results: Iterable[TrialResult], by: Callable[[StudyTrial], Key], *, value: str = "test"
) -> dict[Key, list[float]]:
    """Average an outcome over tasks, once for each seed.

    Only tasks with an outcome for every key and seed count, so that all means are over the same tasks.

    Args:
        results: The results, one for each key, task and seed.
        by: Returns a trial's key.
        value: The name of the outcome.

    Returns:
        The mean for each seed, by key; empty where no task is complete.
    """
    outcomes = {(by(result.trial), result.trial.task, result.trial.seed): result.outcome[value] for result in results}
    keys = dict.fromkeys(key for key, _, _ in outcomes)
    tasks, seeds = dict.fromkeys(task for _, task, _ in outcomes), dict.fromkeys(seed for *_, seed in outcomes)
    complete = [task for task in tasks if all((key, task, seed) in outcomes for key in keys for seed in seeds)]
    if not complete:
        return {}
    return {key: [mean_of(outcomes[key, task, seed] for task in complete) for seed in seeds] for key in keys}


def gaps_to_full(scores: Mapping[tuple[Key, str], float]) -> dict[str, dict[Key, float]]:
    """Return by method and task, or other circumstance, the score minus the score of full fine-tuning.

    Circumstances without a score of full fine-tuning are left out.

    Args:
        scores: Scores by circumstance and label of the method.

    >>> gaps_to_full({("mood", "lora"): 0.5, ("mood", "full"): 0.75})
    {'lora': {'mood': -0.25}, 'full': {'mood': 0.0}}
    """
    gaps: defaultdict[str, dict[Key, float]] = defaultdict(dict)
    for (circumstance, method), score in scores.items():
        if (full := scores.get((circumstance, method_label(FULL)))) is not None:
            gaps[method][circumstance] = score - full
    return dict(gaps)


def deviation(values: Sequence[float]) -> float | None:
    """Return the standard deviation of a sample, of n − 1 degrees of freedom; None for a single value."""
    return stdev(values) if len(values) > 1 else None


def group_lines(means: Mapping[tuple[str, Number], float]) -> dict[str, Line]:
    """Build one line per first half of a key, through its second halves in ascending order.

    >>> group_lines({("lora", 300): 0.8, ("lora", 100): 0.7})
    {'lora': Line(x=[100, 300], y=[0.7, 0.8], low=None, high=None)}
    """
    points: defaultdict[str, list[tuple[Number, float]]] = defaultdict(list)
    for (name, x), y in means.items():
        points[name].append((x, y))
    sorted_points = {name: sorted(line_points) for name, line_points in points.items()}
    return {
        name: Line([x for x, _ in line_points], [y for _, y in line_points])
        for name, line_points in sorted_points.items()
    }


def task_of(trial: StudyTrial) -> str:
    """Return the name of the trial's task."""
    return trial.task


def method_of(trial: StudyTrial) -> str:
    """Return the label of the trial's method."""
    return method_label(trial.candidate.method)


def task_and_method(trial: StudyTrial) -> tuple[str, str]:
    """Return the name of the trial's task and the label of its method."""
    return task_of(trial), method_of(trial)


def mean_of(values: Iterable[float]) -> float:
    """Return the mean of at least one value."""
    average = mean(values)
    assert average is not None
    return average


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the 20th, 50th and 80th percentile, linearly interpolated.

    >>> percentiles([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    (1.0, 2.5, 4.0)
    """
    low, middle, high = np.percentile(values, PERCENTILES).tolist()
    return low, middle, high


def method_of_name(name: str, **settings: Any) -> Method:
    """Return the method with a name and settings."""
    return Method.model_validate({"name": name, **settings})


def method_label(method: Method) -> str:
    """Return a method's label in tables and figures: its name and settings.

    >>> method_label(Method.model_validate({"name": "union", "parts": ["bitfit", {"name": "lora", "rank": 2}]}))
    'bitfit + lora rank 2'
    """
    settings = dict(method.settings)
    parts = [method_label(Method.model_validate(part)) for part in settings.pop("parts", ())]
    separator = {"union": " + ", "sequential": ", then "}.get(method.name, " ")
    name = separator.join(parts) or method.name
    return " ".join((name, *(f"{key} {_format_setting(value)}" for key, value in settings.items())))


def _format_setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key} {_format_setting(inner)}" for key, inner in value.items())
    return ", ".join(map(_format_setting, value)) if isinstance(value, list | tuple) else f"{value}"
