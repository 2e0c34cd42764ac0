"""Which task helps which: every task's score, with few rows, when it starts from every other.

    scratch   trained from nothing
    frozen    the head in closed form, in the features of the source's delta; nothing is trained
    warm      trained from the source's delta and that head
    plain     the head in closed form, in the backbone's own features: what `frozen` is to be compared with

    gain = warm − scratch

And how well each measure of similarity ranks the sources by their gain: Spearman's rank correlation for each target,
and Regret@3, the best gain of all sources less the best of the three that the measure names first. Renggli et al.
(2022), "Which Model to Transfer? Finding the Needle in the Growing Haystack" (arXiv:2010.06402).
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
from continual.experiments.studies.trial_runner import TrialRunner, test_score
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

LINEAR_PROBE = "probe"  # the method that changes nothing


@final
class Transfer(Study):
    """shots: rows of each label that a target has; a source has all of its own · epochs: a target's, in place of its
    own; a source's stay · method: of all tasks, in place of the stream's.
    """

    shows: ClassVar[str] = "score of every task when it starts from every other: scratch, frozen, warm"
    paper: ClassVar[str] = "Vu et al. 2020, arXiv:2005.00770"

    shots: int = Field(default=16, ge=1)
    epochs: int = Field(default=10, ge=0)
    method: Method | None = None

    def trials(self, bench: TrialRunner) -> Iterator[StudyTrial]:
        if len(bench.tasks) < 2:
            raise StudyError(f"transfer is between tasks, and there is {len(bench.tasks)}; give two or more")
        _require_copies(bench.backbone, [self._target(data, 0).candidate.method for data in bench.tasks])
        _require_same_layers(bench)
        for seed in bench.seeds:
            yield from (self._target(data, seed) for data in bench.tasks)
            for source in bench.tasks:
                learned = make_trial(source, seed, self.method)
                for data in bench.tasks:
                    if data is not source:
                        yield replace(self._target(data, seed), source=learned)

    def _target(self, data: TaskData, seed: int) -> StudyTrial:
        return make_trial(data, seed, self.method, epochs=self.epochs, shots=self.shots)

    def measure(self, bench: TrialRunner, trial: StudyTrial) -> Mapping[str, Any]:
        subject = bench.trial_task(trial)
        task = subject.task
        if trial.source is None:
            plain = _begun(task, subject.start, LINEAR_PROBE, seed=trial.seed)
            return {
                "plain": test_score(task, plain, task.test),
                "scratch": _learned(task, subject.start, seed=trial.seed),
            }
        rows, held_out = (ForwardContext(task.backbone, None, rows) for rows in (task.train, task.validation))
        neighbour = bench.source_delta(trial.source)
        source = evaluate_candidate(task.kind, (neighbour, 1.0), delta=neighbour.delta, rows=rows, held_out=held_out)
        frozen = _begun(
            task, replace(source, start=source.start_without_transferred_head), task.method.name, seed=trial.seed
        )
        origin = bench.trial_task(trial.source).task
        own, other = (task_signature(of.kind, ForwardContext(of.backbone, None, of.train)) for of in (task, origin))
        stored = {name: measure(own, other) for name, measure in SIGNATURE_MEASURES.items()}
        return {
            "frozen": test_score(task, frozen, task.test),
            "warm": _learned(task, source, seed=trial.seed),
            "measures": {**stored, **transferability_measures(task, neighbour.delta)},
        }

    def result(self, found: Sequence[TrialResult]) -> Result:
        runs = transfer_runs(found)
        tasks = list(dict.fromkeys(one.trial.task for one in found))
        gains, moved = (_gains(runs, tasks, *of) for of in (("warm", "scratch"), ("frozen", "plain")))
        columns, measures = _EVERY, list(runs[0].measures) if runs else []
        every = tuple((*(getattr(run, name) for name in columns), *run.measures.values()) for run in runs)
        there = [gain for row in gains for gain in row if gain is not None]
        return Result(
            (
                Section("Best source of each target", BEST, table=_best(runs, tasks)),
                _map("Gain over training from scratch", GAIN, gains, tasks),
                _map("Gain without training", FROZEN, moved, tasks),
                Section("Measures of similarity", MEASURES, table=_judged(runs, measures)),
                Section("Every run", RUNS, table=Table((*columns, *measures), every)),
            ),
            {"mean_gain": mean_of(there), "best_gain": max(there), "worst_gain": min(there)} if there else {},
        )


BEST = "Means over seeds. Gain: trained from that source less trained from scratch."
GAIN = "Test score trained from the source's delta less that from scratch; rows are targets, columns sources."
FROZEN = "The same with the head in closed form alone: in the source's features less in the backbone's own."
MEASURES = "How each ranks a target's sources by gain; means over targets and seeds. Regret is in points of the score."
RUNS = "Scores on test rows, and every measure of similarity of the pair."
FIRST = 3  # sources that a measure may name


@dataclass(frozen=True)
class TransferRun:
    """What one target came to from one source with one seed."""

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
        return self.warm - self.scratch


_EVERY = ("target", "source", "seed", "scratch", "plain", "frozen", "warm")


def transfer_runs(found: Sequence[TrialResult]) -> list[TransferRun]:
    """Every pair with every seed whose target was also trained from scratch."""
    alone = {(one.trial.task, one.trial.seed): one.outcome for one in found if one.trial.source is None}
    return [
        TransferRun(one.trial.task, source.task, one.trial.seed, **alone[one.trial.task, one.trial.seed], **one.outcome)
        for one in found
        if (source := one.trial.source) and (one.trial.task, one.trial.seed) in alone
    ]


def _begun(task: PreparedTask, start: WarmStartCandidate, method: str, *, seed: int) -> Delta:
    """What training by a method begins with, and what answers without any."""
    settings = METHODS[LINEAR_PROBE]() if method == LINEAR_PROBE else method_settings(task.method)
    return initial_delta(task.backbone, task.kind, start, method=method, settings=settings, seed=seed)


def _learned(task: PreparedTask, start: WarmStartCandidate, *, seed: int) -> float:
    return test_score(task, task.training_run(start, seed=seed).run().delta, task.test)


def _require_copies(backbone: Backbone, methods: Sequence[Method]) -> None:
    """Raise StudyError unless all tasks have one method, whose values another task can begin with."""
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


def _require_same_layers(bench: TrialRunner) -> None:
    """Raise StudyError where tasks of an encoder-decoder use other layers of it, so that values are lacking."""
    generating = [data.spec.name for data in bench.tasks if kind_of_spec(data.spec).generates]
    if bench.backbone.family.decoder and 0 < len(generating) < len(bench.tasks):
        raise StudyError(
            f"on an encoder-decoder, {', '.join(generating)} answer with the decoder and the other tasks do not, so "
            "that neither can start from the other; choose tasks of one sort with --tasks"
        )


def _gains(runs: Sequence[TransferRun], tasks: Sequence[str], new: str, old: str) -> list[list[float | None]]:
    """For each target (rows) and source (columns) the mean gain over seeds; None where there is none."""
    gains = {pair: own[new] - own[old] for pair, own in _means(runs).items()}
    return [[gains.get((target, source)) for source in tasks] for target in tasks]


def _map(title: str, text: str, matrix: ScoreMatrix, tasks: Sequence[str]) -> Section:
    figure = gain_map(matrix, down=tasks, across=tasks, title=title.lower(), labels=("target", "source"))
    rows = tuple((target, *row) for target, row in zip(tasks, matrix, strict=True))
    table = Table(("target", *tasks), rows, dict.fromkeys(tasks, "+.3f"))
    return Section(title, text, table=table, figure=figure, caption=f"{title}, for each target and source")


def _judged(runs: Sequence[TransferRun], measures: Sequence[str]) -> Table:
    """Every measure, the one of least regret first."""
    ranked: defaultdict[tuple[str, int], list[TransferRun]] = defaultdict(list)
    for run in runs:
        ranked[run.target, run.seed].append(run)
    rows = []
    for name in measures:
        known = [
            ([run.gain for run in own], [found for run in own if (found := run.measures[name]) is not None])
            for own in ranked.values()
        ]
        pairs = [(gains, values) for gains, values in known if len(gains) == len(values) > 0]
        if pairs:
            correlations = [found for pair in pairs if (found := rank_correlation(*pair)) is not None]
            regret = mean_of(regret_at(FIRST, gains, values) for gains, values in pairs)
            rows.append((name, mean_of(correlations) if correlations else None, regret))
    return Table(("measure", "rank correlation", f"regret@{FIRST}"), tuple(sorted(rows, key=lambda row: row[2])))


def rank_correlation(gains: Sequence[float], values: Sequence[float]) -> float | None:
    """Spearman's, of what a measure says and what was gained; None where one of the two is the same for all."""
    if len(set(gains)) < 2 or len(set(values)) < 2:
        return None
    return float(spearmanr(gains, values).statistic)


def regret_at(first: int, gains: Sequence[float], values: Sequence[float]) -> float:
    """The best gain of all less the best of the sources that the measure names first."""
    order = sorted(range(len(values)), key=lambda i: -values[i])
    return max(gains) - max(gains[i] for i in order[:first])


def _best(runs: Sequence[TransferRun], tasks: Sequence[str]) -> Table:
    columns = ("target", "plain", "scratch", "best source", "frozen", "warm", "gain")
    rows = []
    for target in tasks:
        means = {source: own for (aim, source), own in _means(runs).items() if aim == target}
        if means:
            best = max(means, key=lambda source: means[source]["warm"])
            own = means[best]
            gain = own["warm"] - own["scratch"]
            rows.append((target, own["plain"], own["scratch"], best, own["frozen"], own["warm"], gain))
    return Table(columns, tuple(rows), {"gain": "+.3f"})


def _means(runs: Sequence[TransferRun]) -> dict[tuple[str, str], dict[str, float]]:
    """For each target and source the means over the seeds."""
    grouped: defaultdict[tuple[str, str], list[TransferRun]] = defaultdict(list)
    for run in runs:
        grouped[run.target, run.source].append(run)
    values = ("scratch", "plain", "frozen", "warm")
    return {pair: {v: mean_of(getattr(run, v) for run in own) for v in values} for pair, own in grouped.items()}
