"""Study: the score drop when layers' edits are removed after training, and adapters' initial scale.

    drop[i, j] = score with the edits of layers i to j removed − score with all edits

Nothing is trained again. Houlsby et al. (2019), "Parameter-Efficient Transfer Learning for NLP" (arXiv:1902.00751),
figure 6: the map of drops, and the score by the standard deviation of the normal that weights are initialized from.
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
from continual.experiments.studies.trial_runner import TrialRunner, score_on_rows, summarize
from continual.reports.html import Section, Table
from continual.reports.html.study_result import Result
from continual.reports.plots import gain_map, line_plot
from tasks import Method

SCALES = (1e-7, 1e-5, 1e-3, 1e-2, 1e-1, 1.0)


@final
class Ablation(Study):
    """Removes the edits of layers after training, and varies the initial scale of a method.

    All edits of a layer are removed; an adapter's trained norms go with it.

    Attributes:
        method: The method whose edits are removed.
        scaled: A method with the setting `initial_scale`.
        scales: The values of `initial_scale` to train `scaled` with.
    """

    shows: ClassVar[str] = "the drop when edits of some layers are removed, and the scale that adapters begin with"
    paper: ClassVar[str] = "Houlsby et al. 2019, arXiv:1902.00751, fig. 6"

    method: Method = Method(name="adapter")
    scaled: Method = Method(name="adapter")
    scales: tuple[float, ...] = SCALES

    def trials(self, runner: TrialRunner) -> Iterable[StudyTrial]:
        """See `Study.trials`."""
        yield from sweep_trials(runner, [self.method], rates=[1.0], extra={"spans": True})
        for scale in self.scales:
            method = Method.model_validate({**self.scaled.model_dump(), "initial_scale": scale})
            yield from sweep_trials(runner, [method], rates=[1.0], extra={"initial_scale": scale})

    def measure(self, runner: TrialRunner, trial: StudyTrial) -> Mapping[str, Any]:
        """See `Study.measure`."""
        task, trained = runner.train(trial)
        outcome = summarize(task, trained)
        if "spans" not in trial.extra:
            return outcome
        scores = [
            [
                score_on_rows(task, ablate_layers(task.backbone, trained.delta, first, last), task.validation)
                for last in lasts
            ]
            for first, lasts in _spans(runner.backbone.num_layers)
        ]
        drops = [[score - trained.score for score in row] for row in scores]
        return {**outcome, "drops": drops, "drop_of_all": drops[0][-1]}

    def result(self, results: Sequence[TrialResult]) -> Result:
        """See `Study.result`."""
        ablation_results = [result for result in results if "spans" in result.trial.extra]
        scale_results = [result for result in results if "initial_scale" in result.trial.extra]
        by_task: dict[str, list[TrialResult]] = {}
        for result in ablation_results:
            by_task.setdefault(result.trial.task, []).append(result)
        sections = [_drop_section("mean over tasks", ablation_results)] if len(by_task) > 1 else []
        sections += [_drop_section(task, task_results) for task, task_results in by_task.items()]
        total_drops = mean_outcomes(ablation_results, "drop_of_all", task_of)
        return Result(
            (*sections, *_scale_sections(scale_results)),
            {f"drop_of_all.{task}": drop for task, drop in total_drops.items()},
        )


def _spans(layers: int) -> list[tuple[int, range]]:
    """Return each first layer with the last layers of its spans: itself and all above."""
    return [(first, range(first, layers)) for first in range(layers)]


def mean_drops(drops: Sequence[Sequence[Sequence[float]]]) -> list[list[float | None]]:
    """Average triangles of drops into one square, with None where the last layer is below the first.

    Args:
        drops: K triangles; row i of a triangle of L layers holds the L − i drops for the spans that begin at layer i.

    Returns:
        L rows of L values, by first and last layer.

    >>> mean_drops([[[-0.5, -1.0], [-0.25]]])
    [[-0.5, -1.0], [None, -0.25]]
    """
    layers = range(len(drops[0]))
    return [
        [None if last < first else mean_of(triangle[first][last - first] for triangle in drops) for last in layers]
        for first in layers
    ]


@dataclass(frozen=True)
class OutsideLayers:
    """A place filter that drops the places in a range of layers from another filter's choice.

    Attributes:
        choice: The other filter; None chooses every place.
        first: The lowest dropped layer.
        last: The highest dropped layer.
    """

    choice: PlaceFilter | None
    first: int
    last: int

    def __call__(self, places: Sequence[Place]) -> Sequence[Place]:
        """Return the chosen places outside the layers."""
        chosen = places if self.choice is None else self.choice(places)
        return [p for p in chosen if p.layer is None or not self.first <= p.layer <= self.last]


class WithoutLayers(MethodSettings):
    """A method without its edits in a range of layers.

    Attributes:
        method: The settings of the whole method.
        first: The lowest layer without edits.
        last: The highest layer without edits.
    """

    method: SerializeAsAny[MethodSettings]
    first: int
    last: int

    def edits(self) -> tuple[Edit, ...]:
        """Return the method's edits, restricted to places outside the layers."""
        return tuple(
            replace(edit, where=OutsideLayers(edit.where, self.first, self.last)) for edit in self.method.edits()
        )


def ablate_layers(backbone: Backbone, delta: Delta, first: int, last: int) -> Delta:
    """Return the delta without its edits in layers `first` to `last`, as if the method had none there."""
    settings = WithoutLayers(method=delta.settings, first=first, last=last)
    remaining_prefixes = {prefix for _, prefix, _ in iterate_edits(backbone, settings)}
    values = {
        key: value
        for key, value in delta.values.items()
        if _edit_prefix(key) in remaining_prefixes or key.startswith(SHARED_PREFIX)
    }
    return replace(delta, settings=settings, values=values)


def _edit_prefix(key: str) -> str:
    """Return the part of a value's key that names its edit and place."""
    return key.rpartition("/")[0]


def _drop_section(name: str, results: Sequence[TrialResult]) -> Section:
    """Build a section with the trials' mean drops as a heat map and a table."""
    matrix = mean_drops([result.outcome["drops"] for result in results])
    layers, labels = [str(layer) for layer in range(len(matrix))], ("first layer removed", "last layer removed")
    table = Table(
        (labels[0], *(f"to {last}" for last in layers)),
        tuple((first, *row) for first, row in zip(layers, matrix, strict=True)),
    )
    return Section(
        f"Edits removed, {name}",
        "Change of the validation score without the edits of these layers, layer 0 the lowest.",
        table=table,
        figure=gain_map(matrix, row_names=layers, column_names=layers, title=name, labels=labels),
        caption=f"Change of the score by layers removed, {name}",
    )


def _scale_sections(results: Sequence[TrialResult]) -> list[Section]:
    if not results:
        return []
    means = mean_outcomes(results, "test", lambda trial: (trial.task, float(trial.extra["initial_scale"])))
    tasks, scales = dict.fromkeys(task for task, _ in means), sorted({scale for _, scale in means})
    x_label = "initial scale: deviation of the normal that weights are drawn from"
    figure = line_plot(group_lines(means), title="mean over seeds", xlabel=x_label, ylabel="test score", log_x=True)
    rows = tuple((f"{scale:g}", *(means.get((task, scale)) for task in tasks)) for scale in scales)
    table = Table(("initial scale", *tasks), rows)
    return [Section("Initial scale", table=table, figure=figure, caption=f"Test score by {x_label}, a line each task")]
