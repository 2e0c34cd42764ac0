"""The runs of the strategies that a stream is compared with: one for each, under that of the stream."""

from continual.comparison import MEASURE_PATHS, average_accuracy_curve, comparison, latest_finished_runs
from continual.plots import comparison_figure
from continual.report import Document
from continual.tracking.client import MlflowClientContext, flatten, to_millis
from registry import StoredStrategy, note_strategy_run


def sync_strategy_runs(to: MlflowClientContext, stream: str, run: str) -> None:
    """Makes the runs that are missing, and draws all strategies that are finished into the stream's own run."""
    runs = latest_finished_runs(to.registry, stream)
    if not runs:
        return
    document = comparison(to.registry, stream, runs, isolated=True)
    told = {one["strategy"]: one for one in document["strategies"]}
    for strategy in runs:
        if to.run(strategy.mlflow_run) is None:
            own = _run(to, strategy, told[strategy.strategy], parent=run)
            with to.registry.unit_of_work() as unit:
                note_strategy_run(unit, strategy.id, own)
    to.client.log_figure(run, comparison_figure(document), "strategies.png")
    to.client.log_dict(run, document, "strategies.json")


def _run(to: MlflowClientContext, strategy: StoredStrategy, told: Document, *, parent: str) -> str:
    """The run of a strategy: one that was finished and not noted, else a new one in place of what was begun."""
    key = to.key("strategy", strategy.stream, strategy.strategy, strategy.recipe)
    for begun in to.runs("key", key):
        if begun.info.status == "FINISHED":
            return str(begun.info.run_id)
        to.client.delete_run(begun.info.run_id)
    tags = to.tags(key, name=strategy.strategy, strategy=strategy.strategy, stream=strategy.stream)
    run: str = to.client.create_run(to.experiment, tags=tags | {"mlflow.parentRunId": parent}).info.run_id
    at = strategy.finished_at or strategy.created_at
    to.log(run, flatten(strategy.settings), _metrics(told), at=at)
    to.client.set_terminated(run, end_time=to_millis(at))
    return run


def _metrics(told: Document) -> dict[tuple[str, int], float]:
    """Measures after the last task, and the mean score on the tasks so far after each."""
    last = len(told["tasks"])
    ends = {f"{mode}_{name}": told[mode].get(name) for mode, name in MEASURE_PATHS.values()}
    ends |= {name: told[name] for name in ("parameters", "bytes", "seconds")}
    found = {(name, last): value for name, value in ends.items()}
    found |= {("oracle_acc_so_far", t): value for t, value in enumerate(average_accuracy_curve(told), start=1)}
    return {place: value for place, value in found.items() if value is not None}
