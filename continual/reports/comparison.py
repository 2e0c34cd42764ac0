"""Compare strategies on a stream: the document of `continual compare --json`, from the registry alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from operator import itemgetter

from continual.reports.report import Document, Matrix, stream_report
from continual.reports.stream_measures import continual_measures, mean
from registry import Registry, ScoreMode, StepScore, StoredStrategy, StoredStream

ISOLATED = "isolated"  # the deltas of `continual run`; the other strategies learn the stream anew
JOINT = "joint"
BEST_EPOCH = "best_epoch"  # name, among a step's scores, of the epoch whose delta is its result
CUMULATIVE = "cumulative"  # joint training anew after every task
MEASURE_PATHS = {  # headings of tables, and where their values are in a strategy's document
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
    """Return the measures and costs of strategies on a stream, as JSON.

    Measures are oracle and routed; costs are parameters and bytes per task, and seconds in all. Intransigence is None
    unless its reference is among the runs and finished:

        intransigence              mean_i (joint[i] − R[i, i])       joint: trained on all tasks
        intransigence_cumulative   mean_k (a*[k, k] − R[k, k])       a*[k]: trained on the tasks up to k alone

    The second is the mean of I_k of Chaudhry et al. (2018), "Riemannian Walk for Incremental Learning"
    (arXiv:1801.10112).

    Args:
        registry: Holds the stream and the runs.
        stream: Name of the stream; its purged tasks are left out and listed under `purged`.
        runs: Runs of strategies on the same tasks.
        isolated: Whether to include the stream's own deltas.

    Raises:
        NotFound: The stream was never started.
    """
    strategies = [_isolated_document(stream_report(registry, stream))] if isolated else []
    strategies += [_strategy_document(run) for run in runs]
    finished = {strategy["strategy"]: strategy for strategy in strategies if strategy["finished"]}
    joint_scores = final_scores(finished[JOINT]) if JOINT in finished else {}
    cumulative_scores = scores_when_learned(finished[CUMULATIVE]) if CUMULATIVE in finished else {}
    for strategy in strategies:
        strategy["oracle"]["intransigence"] = _intransigence(strategy, joint_scores)
        strategy["oracle"]["intransigence_cumulative"] = _intransigence(strategy, cumulative_scores)
    stored = registry.stream(stream)
    return {
        "stream": stream,
        "backbone": registry.backbone(stored.backbone).name,
        "tasks": _remaining_tasks(stored),
        "purged": [position.task for position in stored.positions if position.purged],
        "strategies": strategies,
        "warnings": [warning for strategy in strategies if (warning := _kept_starts(strategy))],
    }


def _kept_starts(strategy: Document) -> str | None:
    """Return a warning where trainings of a strategy never improved on their starts, else None."""
    unimproved_tasks = [task for task, epoch in strategy["best_epochs"].items() if epoch == 0]
    if not unimproved_tasks:
        return None
    return (
        f"{strategy['strategy']}: {len(unimproved_tasks)} of {len(strategy['best_epochs'])} trainings never left their "
        f"start ({', '.join(unimproved_tasks)}): epoch 0 stayed best on the validation rows, so that its scores are "
        "those of the start. Give more validation rows, or another learning rate"
    )


def measure_values(strategy: Document) -> list[float | None]:
    """Return one strategy's values of `MEASURE_PATHS`, in that order."""
    return [strategy[mode].get(name) for mode, name in MEASURE_PATHS.values()]


def average_accuracy_curve(strategy: Document) -> list[float | None]:
    """Return ACC_t, the mean score on the first t tasks, after each task t; None where one was not scored."""
    rows = [row[: t + 1] for t, row in enumerate(strategy["oracle"]["matrix"])]
    return [mean(row) if None not in row else None for row in rows]


def final_scores(strategy: Document) -> dict[str, float | None]:
    """Return one strategy's scores after the last task, by task."""
    tasks = strategy["tasks"]
    return dict(zip(tasks, strategy["oracle"]["matrix"][-1], strict=True)) if tasks else {}


def scores_when_learned(strategy: Document) -> dict[str, float | None]:
    """Return one strategy's scores R[i, i], by task."""
    return {task: strategy["oracle"]["matrix"][i][i] for i, task in enumerate(strategy["tasks"])}


def latest_finished_runs(registry: Registry, stream: str) -> list[StoredStrategy]:
    """Return each strategy's latest finished run, ordered by when the strategy first finished.

    Only runs on all of the stream's present tasks count: scores on other tasks are not comparable.
    """
    tasks = _remaining_tasks(registry.stream(stream))
    comparable = [run for run in registry.strategies(stream) if list(run.tasks) == tasks]
    finished = [(run.finished_at, run) for run in comparable if run.finished_at]
    return list({run.strategy: run for _, run in sorted(finished, key=itemgetter(0))}.values())


def _remaining_tasks(stream: StoredStream) -> list[str]:
    """Return the tasks of a stream that were not purged."""
    return [position.task for position in stream.positions if not position.purged]


def _isolated_document(report: Document) -> Document:
    """Return the part of a stream's report that compares with strategies, without purged tasks."""
    oracle, routed = report["oracle"], report["routed"]
    indices = [i for i, task in enumerate(report["per_task"]) if task["score"] is not None]  # of the rest, purged
    tasks = [report["per_task"][i] for i in indices]
    return {
        "strategy": ISOLATED,
        "settings": {},
        "finished": not report["unfinished"],
        "tasks": [task["task"] for task in tasks],
        "oracle": {**oracle, "matrix": _submatrix(oracle["matrix"], indices)},
        "routed": {name: routed[name] for name in (*EMPTY_MEASURES, "routing_accuracy")}
        | {"matrix": _submatrix(routed["matrix"], indices)},
        "best_epochs": {task["task"]: task["best_epoch"] for task in tasks if task["epochs"]},
        "parameters": mean(task["parameters"] for task in tasks),
        "bytes": mean(task["bytes"] for task in tasks),
        "seconds": sum(task["seconds"] for task in tasks),
    }


def _submatrix(matrix: Matrix, indices: Sequence[int]) -> Matrix:
    """Return R[t, i] of the tasks at `indices`, with scores before training just above the diagonal."""
    return [
        [matrix[i - 1][i] if column == row + 1 else matrix[t][i] for column, i in enumerate(indices)]
        for row, t in enumerate(indices)
    ]


def _strategy_document(run: StoredStrategy) -> Document:
    last = run.steps[-1] if run.steps else None
    num_learned = last.number + 1 if last else 0
    return {
        "strategy": run.strategy,
        "settings": run.settings,
        "finished": run.finished_at is not None,
        "tasks": list(run.tasks[:num_learned]),
        "oracle": _mode_document(run, "oracle"),
        "routed": _mode_document(run, "routed") | {"routing_accuracy": _routing_accuracy(run)},
        "best_epochs": {
            score.task: int(score.value) for step in run.steps for score in step.scores if score.metric == BEST_EPOCH
        },
        "parameters": last and last.parameters / num_learned,
        "bytes": last and last.bytes / num_learned,
        "seconds": sum(step.seconds for step in run.steps),
    }


def _mode_document(run: StoredStrategy, mode: ScoreMode) -> Document:
    """Return a mode's matrix with its measures; of a strategy that learned all tasks at once, ACC alone."""
    matrix = _matrix(run, mode)
    if [step.number for step in run.steps] != list(range(len(matrix))):
        return {"matrix": matrix, **EMPTY_MEASURES, "acc": mean(value for value in matrix[-1] if value is not None)}
    if mode != "oracle":
        return {"matrix": matrix, **asdict(continual_measures(matrix))}
    before, random_init = (
        [_scores_by_task(step.scores, baseline).get(run.tasks[step.number]) for step in run.steps]
        for baseline in ("frozen", "random_init")
    )
    return {"matrix": matrix, **asdict(continual_measures(matrix, before, random_init=random_init))}


def _matrix(run: StoredStrategy, mode: ScoreMode) -> Matrix:
    """Return R[t, i], None where not scored; oracle has scores before training above the diagonal."""
    num_learned = run.steps[-1].number + 1 if run.steps else 0
    tasks = run.tasks[:num_learned]
    matrix: Matrix = [[None] * num_learned for _ in tasks]
    for step in run.steps:
        scores = _scores_by_task(step.scores, mode)
        matrix[step.number] = [scores.get(task) for task in tasks]
        if mode == "oracle" and step.number:
            before_training = _scores_by_task(step.scores, "neighbour")
            matrix[step.number - 1][step.number] = before_training.get(tasks[step.number])
    return matrix


def _scores_by_task(scores: Iterable[StepScore], mode: ScoreMode) -> dict[str, float]:
    """Return the scores of a mode by task, without routing accuracies."""
    return {score.task: score.value for score in scores if score.mode == mode and score.metric != "routing_accuracy"}


def _routing_accuracy(run: StoredStrategy) -> float | None:
    """Return the routing accuracy over all test rows after the last step."""
    scores = [score for score in run.steps[-1].scores if score.metric == "routing_accuracy"] if run.steps else []
    return sum(score.value * score.rows for score in scores) / sum(score.rows for score in scores) if scores else None


def _intransigence(strategy: Document, reference_scores: Mapping[str, float | None]) -> float | None:
    """Return mean_i (reference[i] − R[i, i]); None for joint training, which has no R[i, i]."""
    if strategy["strategy"] == JOINT or not reference_scores:
        return None
    pairs = ((reference_scores.get(task), score) for task, score in scores_when_learned(strategy).items())
    return mean(reference - score for reference, score in pairs if reference is not None and score is not None)
