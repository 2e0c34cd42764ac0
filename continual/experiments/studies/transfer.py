"""Study: pairwise transfer, each task's few-shot score when it starts from each other task's delta.

    scratch   trained from scratch
    frozen    closed-form head in the features of the source's delta; nothing is trained
    warm      trained from the source's delta and that head
    plain     closed-form head in the backbone's own features; the baseline of `frozen`

    gain = warm − scratch

Each measure of similarity is judged by how well it ranks the sources by their gain: Spearman's rank correlation for
each target, and Regret@3, the best gain of all sources minus the best gain of the three that the measure ranks first.
Renggli et al. (2022), "Which Model to Transfer? Finding the Needle in the Growing Haystack" (arXiv:2010.06402).
Vu et al. (2020), "Exploring and Predicting Transferability across NLP Tasks" (arXiv:2005.00770).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

from pydantic import Field
from scipy.stats import spearmanr

from continual.backbones.backbone import Backbone
from continual.deltas import METHODS, Delta, can_be_retrained, method_settings
from continual.errors import StudyError
from continual.experiments.studies.aggregation import make_trial, mean_of
from continual.experiments.studies.study import Study
from continual.experiments.studies.trial import StudyTrial, TrialResult
from continual.experiments.studies.trial_runner import TrialRunner, score_on_rows
from continual.inference.task_statistics import task_signature
from continual.kinds import ForwardContext, kind_of_spec
from continual.learning.prepared import PreparedTask
from continual.learning.similar_tasks import transferability_measures
from continual.reports.html import Section, Table
from continual.reports.html.study_result import Result
from continual.reports.plots import gain_map
from continual.reports.stream_measures import ScoreMatrix
from continual.training.method_search import search_settings
from continual.transfer.similarity import SIGNATURE_MEASURES
from continual.transfer.warm_start import WarmStartCandidate, evaluate_candidate, initial_delta
from tasks import Method, TaskData

LINEAR_PROBE = "probe"  # the method without edits


@final
class Transfer(Study):
    """Trains every task from every other task's delta.

    Attributes:
        shots: Rows of each label of a target; a source has all of its rows.
        epochs: Epochs of a target, in place of its own; a source has its own.
        method: The method of all tasks, in place of the stream's.
    """

    shows: ClassVar[str] = "score of every task when it starts from every other: scratch, frozen, warm"
    paper: ClassVar[str] = "Vu et al. 2020, arXiv:2005.00770"

    shots: int = Field(default=16, ge=1)
    epochs: int = Field(default=10, ge=0)
    method: Method | None = None

    def trials(self, runner: TrialRunner) -> Iterator[StudyTrial]:
        """See `Study.trials`."""
        if len(runner.tasks) < 2:
            raise StudyError(f"transfer is between tasks, and there is {len(runner.tasks)}; give two or more")
        _require_copies(runner.backbone, [self._target(data, 0).candidate.method for data in runner.tasks])
        _require_same_layers(runner)
        for seed in runner.seeds:
            yield from (self._target(data, seed) for data in runner.tasks)
            for source in runner.tasks:
                source_trial = make_trial(source, seed, self.method)
                for data in runner.tasks:
                    if data is not source:
                        yield replace(self._target(data, seed), source=source_trial)

    def _target(self, data: TaskData, seed: int) -> StudyTrial:
        return make_trial(data, seed, self.method, epochs=self.epochs, shots=self.shots)

    def measure(self, runner: TrialRunner, trial: StudyTrial) -> Mapping[str, Any]:
        """See `Study.measure`."""
        trial_task = runner.trial_task(trial)
        task = trial_task.task
        if trial.source is None:
            plain = _untrained_delta(task, trial_task.start, LINEAR_PROBE, seed=trial.seed)
            return {
                "plain": score_on_rows(task, plain, task.test),
                "scratch": _trained_score(task, trial_task.start, seed=trial.seed),
            }
        rows, held_out = (ForwardContext(task.backbone, None, rows) for rows in (task.train, task.validation))
        neighbour = runner.source_delta(trial.source)
        start = evaluate_candidate(task.kind, (neighbour, 1.0), delta=neighbour.delta, rows=rows, held_out=held_out)
        frozen = _untrained_delta(
            task, replace(start, start=start.start_without_transferred_head), task.method.name, seed=trial.seed
        )
        source_task = runner.trial_task(trial.source).task
        target_signature, source_signature = (
            task_signature(prepared.kind, ForwardContext(prepared.backbone, None, prepared.train))
            for prepared in (task, source_task)
        )
        similarities = {
            name: measure(target_signature, source_signature) for name, measure in SIGNATURE_MEASURES.items()
        }
        return {
            "frozen": score_on_rows(task, frozen, task.test),
            "warm": _trained_score(task, start, seed=trial.seed),
            "measures": {**similarities, **transferability_measures(task, neighbour.delta)},
        }

    def result(self, results: Sequence[TrialResult]) -> Result:
        """See `Study.result`."""
        runs = transfer_runs(results)
        tasks = list(dict.fromkeys(result.trial.task for result in results))
        gains, frozen_gains = (_gains(runs, tasks, *modes) for modes in (("warm", "scratch"), ("frozen", "plain")))
        columns, measures = _RUN_COLUMNS, list(runs[0].measures) if runs else []
        run_rows = tuple((*(getattr(run, name) for name in columns), *run.measures.values()) for run in runs)
        known_gains = [gain for row in gains for gain in row if gain is not None]
        return Result(
            (
                Section("Best source of each target", BEST, table=_best_sources_table(runs, tasks)),
                _gain_section("Gain over training from scratch", GAIN, gains, tasks),
                _gain_section("Gain without training", FROZEN, frozen_gains, tasks),
                Section("Measures of similarity", MEASURES, table=_measures_table(runs, measures)),
                Section("Every run", RUNS, table=Table((*columns, *measures), run_rows)),
            ),
            {"mean_gain": mean_of(known_gains), "best_gain": max(known_gains), "worst_gain": min(known_gains)}
            if known_gains
            else {},
        )


BEST = "Means over seeds. Gain: trained from that source less trained from scratch."
GAIN = "Test score trained from the source's delta less that from scratch; rows are targets, columns sources."
FROZEN = "The same with the head in closed form alone: in the source's features less in the backbone's own."
MEASURES = "How each ranks a target's sources by gain; means over targets and seeds. Regret is in points of the score."
RUNS = "Scores on test rows, and every measure of similarity of the pair."
TOP_SOURCES = 3  # sources of which a measure's best counts


@dataclass(frozen=True)
class TransferRun:
    """The scores of one target that starts from one source, with one seed.

    Attributes:
        target: The task that is learned.
        source: The task whose delta it starts from.
        seed: The seed.
        scratch: The test score when trained from scratch.
        plain: The test score of the closed-form head in frozen features.
        frozen: The test score of the closed-form head in the features of the source's delta.
        warm: The test score when trained from the source's delta.
        measures: The measures of similarity between target and source.
    """

    target: str
    source: str
    seed: int
    scratch: float
    plain: float
    frozen: float
    warm: float
    measures: Mapping[str, float | None]

    @property
    def gain(self) -> float:
        """The warm score minus the scratch score."""
        return self.warm - self.scratch


_RUN_COLUMNS = ("target", "source", "seed", "scratch", "plain", "frozen", "warm")


def transfer_runs(results: Sequence[TrialResult]) -> list[TransferRun]:
    """Return a run for every pair and seed whose target was also trained from scratch."""
    scratch_outcomes = {
        (result.trial.task, result.trial.seed): result.outcome for result in results if result.trial.source is None
    }
    return [
        TransferRun(
            result.trial.task,
            source.task,
            result.trial.seed,
            **scratch_outcomes[result.trial.task, result.trial.seed],
            **result.outcome,
        )
        for result in results
        if (source := result.trial.source) and (result.trial.task, result.trial.seed) in scratch_outcomes
    ]


def _untrained_delta(task: PreparedTask, start: WarmStartCandidate, method: str, *, seed: int) -> Delta:
    """Return the delta that training by a method starts from, which can answer without training."""
    settings = METHODS[LINEAR_PROBE]() if method == LINEAR_PROBE else method_settings(task.method)
    return initial_delta(task.backbone, task.kind, start, method=method, settings=settings, seed=seed)


def _trained_score(task: PreparedTask, start: WarmStartCandidate, *, seed: int) -> float:
    return score_on_rows(task, task.training_run(start, seed=seed).run().delta, task.test)


def _require_copies(backbone: Backbone, methods: Sequence[Method]) -> None:
    """Require one method for all tasks, whose values another task can start from.

    Raises:
        StudyError: There are several methods, a search, or values that cannot be trained further.
    """
    first = methods[0]
    if search_settings(first) or any(method != first for method in methods):
        names = ", ".join(sorted({method.name for method in methods}))
        raise StudyError(
            f"transfer copies values between tasks, so that one method must be named for all; the tasks have {names}. "
            "Name it with --set method=lora"
        )
    if not can_be_retrained(backbone, method_settings(first)):
        raise StudyError(
            f"what {first.name!r} has learned cannot be trained on, so that no task can start from it; "
            "choose another method, as in --set method=lora"
        )


def _require_same_layers(runner: TrialRunner) -> None:
    """Require that either all tasks or none use an encoder-decoder's decoder.

    Raises:
        StudyError: Tasks use different layers, so that one lacks values that the other needs.
    """
    generating = [data.spec.name for data in runner.tasks if kind_of_spec(data.spec).generates]
    if runner.backbone.family.decoder and 0 < len(generating) < len(runner.tasks):
        raise StudyError(
            f"on an encoder-decoder, {', '.join(generating)} answer with the decoder and the other tasks do not, so "
            "that neither can start from the other; choose tasks of one sort with --tasks"
        )


def _gains(runs: Sequence[TransferRun], tasks: Sequence[str], new: str, old: str) -> list[list[float | None]]:
    """Return the mean gain over seeds by target (rows) and source (columns); None where there is none."""
    gains = {pair: means[new] - means[old] for pair, means in _means(runs).items()}
    return [[gains.get((target, source)) for source in tasks] for target in tasks]


def _gain_section(title: str, text: str, matrix: ScoreMatrix, tasks: Sequence[str]) -> Section:
    figure = gain_map(matrix, row_names=tasks, column_names=tasks, title=title.lower(), labels=("target", "source"))
    rows = tuple((target, *row) for target, row in zip(tasks, matrix, strict=True))
    table = Table(("target", *tasks), rows, dict.fromkeys(tasks, "+.3f"))
    return Section(title, text, table=table, figure=figure, caption=f"{title}, for each target and source")


def _measures_table(runs: Sequence[TransferRun], measures: Sequence[str]) -> Table:
    """Build a table of the measures of similarity, ordered by regret."""
    groups: defaultdict[tuple[str, int], list[TransferRun]] = defaultdict(list)
    for run in runs:
        groups[run.target, run.seed].append(run)
    rows = []
    for name in measures:
        measured = [
            ([run.gain for run in group], [value for run in group if (value := run.measures[name]) is not None])
            for group in groups.values()
        ]
        comparable = [(gains, values) for gains, values in measured if len(gains) == len(values) > 0]
        if comparable:
            correlations = [value for pair in comparable if (value := rank_correlation(*pair)) is not None]
            regret = mean_of(regret_at(TOP_SOURCES, gains, values) for gains, values in comparable)
            rows.append((name, mean_of(correlations) if correlations else None, regret))
    return Table(("measure", "rank correlation", f"regret@{TOP_SOURCES}"), tuple(sorted(rows, key=lambda row: row[2])))


def rank_correlation(gains: Sequence[float], values: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation of gains and values; None where either is constant."""
    if len(set(gains)) < 2 or len(set(values)) < 2:
        return None
    return float(spearmanr(gains, values).statistic)


def regret_at(first: int, gains: Sequence[float], values: Sequence[float]) -> float:
    """Return the best gain of all sources minus the best of the `first` with the highest values.

    Args:
        first: The number of sources that a measure may name.
        gains: The gain of each source.
        values: The measure of each source; higher is more similar.
    """
    order = sorted(range(len(values)), key=lambda i: -values[i])
    return max(gains) - max(gains[i] for i in order[:first])


def _best_sources_table(runs: Sequence[TransferRun], tasks: Sequence[str]) -> Table:
    columns = ("target", "plain", "scratch", "best source", "frozen", "warm", "gain")
    rows = []
    means_by_pair = _means(runs)
    for target in tasks:
        warm = {
            source: means["warm"] for (pair_target, source), means in means_by_pair.items() if pair_target == target
        }
        if warm:
            best = max(warm, key=warm.__getitem__)
            means = means_by_pair[target, best]
            gain = means["warm"] - means["scratch"]
            rows.append((target, means["plain"], means["scratch"], best, means["frozen"], means["warm"], gain))
    return Table(columns, tuple(rows), {"gain": "+.3f"})


def _means(runs: Sequence[TransferRun]) -> dict[tuple[str, str], dict[str, float]]:
    """Return the mean scores over seeds by target and source."""
    grouped: defaultdict[tuple[str, str], list[TransferRun]] = defaultdict(list)
    for run in runs:
        grouped[run.target, run.source].append(run)
    values = ("scratch", "plain", "frozen", "warm")
    return {
        pair: {name: mean_of(getattr(run, name) for run in group) for name in values} for pair, group in grouped.items()
    }
