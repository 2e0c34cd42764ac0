"""The runs of the strategies that a stream is compared with: one for each, under that of the stream."""

from continual.reports.comparison import MEASURE_PATHS, average_accuracy_curve, comparison, latest_finished_runs
from continual.reports.plots import comparison_figure
from continual.reports.report import Document, stream_report
from continual.reports.stream_measures import ContinualMeasures
from continual.tracking.client import MlflowClientContext, flatten, to_millis
from continual.tracking.stream_models import sync_stream_model
from registry import OutboxMessage, StoredStrategy, StoredStream, delete_sent, note_strategy_run

ROUTED = ("routing_accuracy", "abstained")  # what is measured of routing alone


def sync_strategy_runs(to: MlflowClientContext, stream: str, run: str) -> None:
    """Makes the runs that are missing, and draws all strategies that are finished into the stream's own run."""
    runs = latest_finished_runs(to.registry, stream)
    if not runs:
        return
    document = comparison(to.registry, stream, runs, isolated=True)
    told = {one["strategy"]: one for one in document["strategies"]}
    for strategy in runs:
        if to.active_run(strategy.mlflow_run) is None:
            own = _strategy_run(to, strategy, told[strategy.strategy], parent=run)
            with to.registry.unit_of_work() as unit:
                note_strategy_run(unit, strategy.id, own)
    to.client.log_figure(run, comparison_figure(document), "strategies.png")
    to.client.log_dict(run, document, "strategies.json")


def _strategy_run(to: MlflowClientContext, strategy: StoredStrategy, told: Document, *, parent: str) -> str:
    """The run of a strategy: one that was finished and not noted, else a new one in place of what was begun."""
    key = to.key("strategy", strategy.stream, strategy.strategy, strategy.recipe)
    for begun in to.find_runs("key", key):
        if begun.info.status == "FINISHED":
            return str(begun.info.run_id)
        to.client.delete_run(begun.info.run_id)
    tags = to.run_tags(key, name=strategy.strategy, strategy=strategy.strategy, stream=strategy.stream)
    run: str = to.client.create_run(to.experiment, tags=tags | {"mlflow.parentRunId": parent}).info.run_id
    at = strategy.finished_at or strategy.created_at
    to.log(run, flatten(strategy.settings), _strategy_metrics(told), at=at)
    to.client.set_terminated(run, end_time=to_millis(at))
    return run


def _strategy_metrics(told: Document) -> dict[tuple[str, int], float]:
    """Measures after the last task, and the mean score on the tasks so far after each."""
    last = len(told["tasks"])
    ends = {f"{mode}_{name}": told[mode].get(name) for mode, name in MEASURE_PATHS.values()}
    ends |= {name: told[name] for name in ("parameters", "bytes", "seconds")}
    found = {(name, last): value for name, value in ends.items()}
    found |= {("oracle_acc_so_far", t): value for t, value in enumerate(average_accuracy_curve(told), start=1)}
    return {place: value for place, value in found.items() if value is not None}


def sync_stream_run(to: MlflowClientContext, pending: OutboxMessage) -> None:
    """Brings the run and the model of a stream up to date, and makes them where there are none."""
    stream = to.registry.stream(pending.subject)
    run = _stream_run(to, stream)
    with to.registry.unit_of_work() as unit:
        unit.set_mlflow_run(stream.name, run)
    _summarise(to, run, stream, stream_report(to.registry, stream.name))
    sync_strategy_runs(to, stream.name, run)
    sync_stream_model(to, stream, run)
    with to.registry.unit_of_work() as unit:
        delete_sent(unit, pending)


def _stream_run(to: MlflowClientContext, stream: StoredStream) -> str:
    key = to.key("stream", stream.name)
    own = {"stream": stream.name, "backbone": stream.backbone}
    known = to.active_run(stream.mlflow_run) or next(iter(to.find_runs("key", key)), None)
    tags = to.run_tags(key, name=stream.name, **own)
    found = known or to.client.create_run(to.experiment, tags=tags)
    settings = flatten({name: value for name, value in stream.spec.items() if name != "tasks"})
    missing = {name: value for name, value in settings.items() if name not in found.data.params}
    to.log(found.info.run_id, missing, {}, at=stream.created_at)  # a parameter of MLflow's keeps its first value
    return str(found.info.run_id)


def _summarise(to: MlflowClientContext, run: str, stream: StoredStream, document: Document) -> None:
    """Measures after as many tasks as are learned, both matrices as heat maps, and the report itself."""
    from continual.reports.html import stream_page  # with matplotlib, which whoever tells nothing starts without
    from continual.reports.plots import confusion_map, confusion_shares, heatmap

    learned = [position.delta for position in stream.positions if position.delta]
    at = to.registry.delta(learned[-1]).created_at if learned else stream.created_at
    for kind in ("oracle", "routed"):
        found = {name: document[kind].get(name) for name in (*ContinualMeasures.__dataclass_fields__, *ROUTED)}
        metrics = {(f"{kind}_{name}", len(learned)): value for name, value in found.items() if value is not None}
        to.log(run, {}, metrics, at=at)
        figure = heatmap(document[kind]["matrix"], document["tasks"], title=f"{document['stream']}, {kind}")
        to.client.log_figure(run, figure, f"matrix_{kind}.png")
    confusion = confusion_shares(document["routed"]["confused"], document["tasks"])
    to.client.log_figure(run, confusion_map(confusion, document["tasks"]), "confusion.png")
    to.client.log_dict(run, document, "report.json")
    to.client.log_text(run, stream_page(to.registry, document), "report.html")
    states = {position.state for position in stream.positions}
    if states <= {"learned", "failed"}:
        to.client.set_terminated(run, "FAILED" if "failed" in states else "FINISHED")
    else:
        to.client.update_run(run, status="RUNNING")
