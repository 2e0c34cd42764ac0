"""What a comparison came to, from the registry alone: the document of `continual compare --json`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from operator import itemgetter

from continual.reports.report import Document, Matrix, stream_report
from continual.reports.stream_measures import continual_measures, mean
from registry import Registry, ScoreMode, StepScore, StoredStrategy, StoredStream

ISOLATED = "isolated"  # ours: not a way to learn anew, but what `continual run` has learned
JOINT = "joint"
MEASURE_PATHS = {  # what tables show of a strategy, by heading: where it stands in the document
    "ACC": ("oracle", "acc"),
    "BWT": ("oracle", "bwt"),
    "forgets": ("oracle", "forgetting"),
    "FWT": ("oracle", "fwt"),
    "LA": ("oracle", "la"),
    "AIA": ("oracle", "aia"),
    "intr.": ("oracle", "intransigence"),
    "routed": ("routed", "acc"),
    "router": ("routed", "routing_accuracy"),
}
MEASURE_LEGEND = (
    "ACC: mean score at the end · BWT: backward transfer · FWT: forward transfer · LA: mean score when learned · "
    "AIA: mean over the stream · intr.: intransigence, joint less LA · routed: ACC where the router chooses the task · "
    "router: its accuracy"
)
COST_LEGEND = "parameters that answer and bytes that are kept, for each task · seconds of learning, all tasks"
EMPTY_MEASURES = asdict(continual_measures([]))


def comparison(registry: Registry, stream: str, runs: Sequence[StoredStrategy], *, isolated: bool) -> Document:
    """Measures of strategies, oracle and routed, and what each takes: parameters and bytes per task, seconds in all.

    isolated: with the stream's own deltas · tasks: those that are left of the stream, of which alone strategies tell,
    without those that were `purged` · intransigence: mean over tasks of joint less R[i, i]; None unless joint is among
    them and finished. Raises NotFound for a stream that was never begun.
    """
    told = [_isolated(stream_report(registry, stream))] if isolated else []
    told += [_told(run) for run in runs]
    ceiling = next((final_scores(one) for one in told if one["strategy"] == JOINT and one["finished"]), {})
    for one in told:
        one["oracle"]["intransigence"] = _intransigence(one, ceiling)
    begun = registry.stream(stream)
    return {
        "stream": stream,
        "backbone": registry.backbone(begun.backbone).name,
        "tasks": _left(begun),
        "purged": [position.task for position in begun.positions if position.purged],
        "strategies": told,
    }


def measure_values(one: Document) -> list[float | None]:
    """What `MEASURED` names, of one strategy."""
    return [one[mode].get(name) for mode, name in MEASURE_PATHS.values()]


def average_accuracy_curve(one: Document) -> list[float | None]:
    """ACC_t, the mean score on the tasks seen so far, after each task; None where that was not measured."""
    rows = [row[: t + 1] for t, row in enumerate(one["oracle"]["matrix"])]
    return [mean(row) if None not in row else None for row in rows]


def final_scores(one: Document) -> dict[str, float | None]:
    """The scores after the last task, by task."""
    return dict(zip(one["tasks"], one["oracle"]["matrix"][-1], strict=True)) if one["tasks"] else {}


def latest_finished_runs(registry: Registry, stream: str) -> list[StoredStrategy]:
    """Of each strategy the run that was finished last, in the order in which they were begun.

    Only those that learned all tasks that the stream has by now: scores on other tasks compare with nothing.
    """
    tasks = _left(registry.stream(stream))
    same = [run for run in registry.strategies(stream) if list(run.tasks) == tasks]
    runs = [(found.finished_at, found) for found in same if found.finished_at]
    return list({found.strategy: found for _, found in sorted(runs, key=itemgetter(0))}.values())


def _left(stream: StoredStream) -> list[str]:
    """The tasks of a stream that were not purged."""
    return [position.task for position in stream.positions if not position.purged]


def _isolated(document: Document) -> Document:
    oracle, routed = document["oracle"], document["routed"]
    kept = [i for i, task in enumerate(document["per_task"]) if task["score"] is not None]  # nothing of what was purged
    tasks = [document["per_task"][i] for i in kept]
    return {
        "strategy": ISOLATED,
        "settings": {},
        "finished": not document["unfinished"],
        "tasks": [task["task"] for task in tasks],
        "oracle": {**oracle, "matrix": _among(oracle["matrix"], kept)},
        "routed": {name: routed[name] for name in (*EMPTY_MEASURES, "routing_accuracy")}
        | {"matrix": _among(routed["matrix"], kept)},
        "parameters": mean(task["parameters"] for task in tasks),
        "bytes": mean(task["bytes"] for task in tasks),
        "seconds": sum(task["seconds"] for task in tasks),
    }


def _among(matrix: Matrix, kept: Sequence[int]) -> Matrix:
    """R[t, i] of the tasks of these numbers: above the diagonal stands what was measured before each one's training."""
    return [
        [matrix[i - 1][i] if column == row + 1 else matrix[t][i] for column, i in enumerate(kept)]
        for row, t in enumerate(kept)
    ]


def _told(run: StoredStrategy) -> Document:
    last = run.steps[-1] if run.steps else None
    known = last.number + 1 if last else 0
    return {
        "strategy": run.strategy,
        "settings": run.settings,
        "finished": run.finished_at is not None,
        "tasks": list(run.tasks[:known]),
        "oracle": _measured(run, "oracle"),
        "routed": _measured(run, "routed") | {"routing_accuracy": _routing_accuracy(run)},
        "parameters": last and last.parameters / known,
        "bytes": last and last.bytes / known,
        "seconds": sum(step.seconds for step in run.steps),
    }


def _measured(run: StoredStrategy, mode: ScoreMode) -> Document:
    """The matrix of a mode with its measures; of what learned all tasks at once its last row, and its mean."""
    matrix = _matrix(run, mode)
    if [step.number for step in run.steps] != list(range(len(matrix))):
        return {"matrix": matrix, **EMPTY_MEASURES, "acc": mean(value for value in matrix[-1] if value is not None)}
    before = None
    if mode == "oracle":
        before = [_values(step.scores, "frozen").get(run.tasks[step.number]) for step in run.steps]
    return {"matrix": matrix, **asdict(continual_measures(matrix, before))}


def _matrix(run: StoredStrategy, mode: ScoreMode) -> Matrix:
    """R[t, i] where it was measured; of the oracle mode with the score before training just above the diagonal."""
    known = run.steps[-1].number + 1 if run.steps else 0
    names = run.tasks[:known]
    rows: Matrix = [[None] * known for _ in names]
    for step in run.steps:
        found = _values(step.scores, mode)
        rows[step.number] = [found.get(name) for name in names]
        if mode == "oracle" and step.number:
            rows[step.number - 1][step.number] = _values(step.scores, "neighbour").get(names[step.number])
    return rows


def _values(scores: Iterable[StepScore], mode: ScoreMode) -> dict[str, float]:
    """The scores of a mode by task, without how often the router was right."""
    return {own.task: own.value for own in scores if own.mode == mode and own.metric != "routing_accuracy"}


def _routing_accuracy(run: StoredStrategy) -> float | None:
    """Over all test rows, after the last step."""
    found = [own for own in run.steps[-1].scores if own.metric == "routing_accuracy"] if run.steps else []
    return sum(own.value * own.rows for own in found) / sum(own.rows for own in found) if found else None


def _intransigence(one: Document, ceiling: Mapping[str, float | None]) -> float | None:
    if one["strategy"] == JOINT or not ceiling:
        return None
    own = {name: one["oracle"]["matrix"][i][i] for i, name in enumerate(one["tasks"])}
    pairs = ((ceiling.get(name), score) for name, score in own.items())
    return mean(best - score for best, score in pairs if best is not None and score is not None)
