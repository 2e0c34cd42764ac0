"""What each layer's edits are worth after training, and how much the scale matters that adapters begin with.

    drop[i, j] = score with the edits of layers i to j undone − score with all of them

Nothing is trained again. Houlsby et al. (2019), "Parameter-Efficient Transfer Learning for NLP" (arXiv:1902.00751),
figure 6: the map of drops, and the score by the deviation of the normal that weights are drawn from.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

from pydantic import SerializeAsAny

from continual.backbones.backbone import Backbone
from continual.backbones.sites import Place
from continual.deltas import Delta, Edit, MethodSettings, iterate_edits
from continual.deltas.edit import PlaceFilter
from continual.deltas.values import SHARED_PREFIX
from continual.experiments.studies.aggregation import group_lines, mean_of, mean_outcomes, sweep_trials, task_of
from continual.experiments.studies.study import Study
from continual.experiments.studies.trial import StudyTrial, TrialResult
from continual.experiments.studies.trial_runner import TrialRunner, summarize, test_score
from continual.reports.html import Section, Table
from continual.reports.html.study_result import Result
from continual.reports.plots import gain_map, line_plot
from tasks import Method

SCALES = (1e-7, 1e-5, 1e-3, 1e-2, 1e-1, 1.0)


@final
class Ablation(Study):
    """method: whose edits are undone · scales: deviations at which `scaled`, a method with an `initial_scale`, begins.

    What is undone are all edits of a layer; an adapter's trained norms go with it.
    """

    shows: ClassVar[str] = "the drop when edits of some layers are removed, and the scale that adapters begin with"
    paper: ClassVar[str] = "Houlsby et al. 2019, arXiv:1902.00751, fig. 6"

    method: Method = Method(name="adapter")
    scaled: Method = Method(name="adapter")
    scales: tuple[float, ...] = SCALES

    def trials(self, bench: TrialRunner) -> Iterable[StudyTrial]:
        yield from sweep_trials(bench, [self.method], rates=[1.0], extra={"spans": True})
        for scale in self.scales:
            method = Method.model_validate({**self.scaled.model_dump(), "initial_scale": scale})
            yield from sweep_trials(bench, [method], rates=[1.0], extra={"initial_scale": scale})

    def measure(self, bench: TrialRunner, trial: StudyTrial) -> Mapping[str, Any]:
        task, trained = bench.train(trial)
        found = summarize(task, trained)
        if "spans" not in trial.extra:
            return found
        scores = [
            [
                test_score(task, ablate_layers(task.backbone, trained.delta, first, last), task.validation)
                for last in lasts
            ]
            for first, lasts in _spans(bench.backbone.num_layers)
        ]
        drops = [[score - trained.score for score in row] for row in scores]
        return {**found, "drops": drops, "drop_of_all": drops[0][-1]}

    def result(self, found: Sequence[TrialResult]) -> Result:
        spans = [one for one in found if "spans" in one.trial.extra]
        scaled = [one for one in found if "initial_scale" in one.trial.extra]
        maps = [_map("mean over tasks", spans)] if len({one.trial.task for one in spans}) > 1 else []
        maps += [
            _map(task, [one for one in spans if one.trial.task == task])
            for task in dict.fromkeys(one.trial.task for one in spans)
        ]
        whole = mean_outcomes(spans, "drop_of_all", task_of)
        return Result((*maps, *_by_scale(scaled)), {f"drop_of_all.{task}": drop for task, drop in whole.items()})


def _spans(layers: int) -> list[tuple[int, range]]:
    """For each first layer the last ones: it and those above."""
    return [(first, range(first, layers)) for first in range(layers)]


def mean_drops(drops: Sequence[Sequence[Sequence[float]]]) -> list[list[float | None]]:
    """The mean of several triangles of drops, as a square: None where the last layer is below the first.

    >>> mean_drops([[[-0.5, -1.0], [-0.25]]])
    [[-0.5, -1.0], [None, -0.25]]
    """
    sizes = range(len(drops[0]))
    return [
        [None if last < first else mean_of(own[first][last - first] for own in drops) for last in sizes]
        for first in sizes
    ]


@dataclass(frozen=True)
class OutsideLayers:
    """The places that another choice takes, but for those of the layers `first` to `last`."""

    choice: PlaceFilter | None
    first: int
    last: int

    def __call__(self, places: Sequence[Place]) -> Sequence[Place]:
        chosen = places if self.choice is None else self.choice(places)
        return [p for p in chosen if p.layer is None or not self.first <= p.layer <= self.last]


class WithoutLayers(MethodSettings):
    """The edits of a method but for those of some layers."""

    method: SerializeAsAny[MethodSettings]
    first: int
    last: int

    def edits(self) -> tuple[Edit, ...]:
        return tuple(
            replace(edit, where=OutsideLayers(edit.where, self.first, self.last)) for edit in self.method.edits()
        )


def ablate_layers(backbone: Backbone, delta: Delta, first: int, last: int) -> Delta:
    """The delta with its edits of the layers `first` to `last` undone, as if the method had none there."""
    settings = WithoutLayers(method=delta.settings, first=first, last=last)
    left = {prefix for _, prefix, _ in iterate_edits(backbone, settings)}
    values = {key: value for key, value in delta.values.items() if _owner(key) in left or key.startswith(SHARED_PREFIX)}
    return replace(delta, settings=settings, values=values)


def _owner(key: str) -> str:
    """The edit and place whose value this is."""
    return key.rpartition("/")[0]


def _map(name: str, found: Sequence[TrialResult]) -> Section:
    """The mean drops of these trials, as a map and a table."""
    matrix = mean_drops([one.outcome["drops"] for one in found])
    layers, labels = [str(layer) for layer in range(len(matrix))], ("first layer removed", "last layer removed")
    table = Table(
        (labels[0], *(f"to {last}" for last in layers)),
        tuple((first, *row) for first, row in zip(layers, matrix, strict=True)),
    )
    return Section(
        f"Edits removed, {name}",
        "Change of the validation score without the edits of these layers, layer 0 the lowest.",
        table=table,
        figure=gain_map(matrix, down=layers, across=layers, title=name, labels=labels),
        caption=f"Change of the score by layers removed, {name}",
    )


def _by_scale(found: Sequence[TrialResult]) -> list[Section]:
    if not found:
        return []
    means = mean_outcomes(found, "test", lambda trial: (trial.task, float(trial.extra["initial_scale"])))
    tasks, scales = dict.fromkeys(task for task, _ in means), sorted({scale for _, scale in means})
    across = "initial scale: deviation of the normal that weights are drawn from"
    figure = line_plot(group_lines(means), title="mean over seeds", across=across, up="test score", logarithmic=True)
    rows = tuple((f"{scale:g}", *(means.get((task, scale)) for task in tasks)) for scale in scales)
    table = Table(("initial scale", *tasks), rows)
    return [Section("Initial scale", table=table, figure=figure, caption=f"Test score by {across}, a line each task")]
