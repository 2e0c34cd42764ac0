"""The MLflow run of a stream, and nested in it one run per compared strategy."""

from datetime import datetime

from continual.reports.comparison import MEASURE_PATHS, average_accuracy_curve, comparison, latest_finished_runs
from continual.reports.report import Document, stream_report
from continual.reports.stream_measures import ContinualMeasures
from continual.tracking.client import MlflowClientContext, flatten, to_millis
from continual.tracking.stream_models import sync_stream_model
from registry import OutboxMessage, StoredStrategy, StoredStream, delete_sent, note_strategy_run

ROUTING_MEASURES = ("routing_accuracy", "abstained")  # measures that exist in routed mode only


def sync_stream_run(context: MlflowClientContext, pending: OutboxMessage) -> None:
    """Create or update a stream's run, the runs of its strategies and its model, and delete the message."""
    stream = context.registry.stream(pending.subject)
    run_id = _ensure_stream_run(context, stream)
    with context.registry.unit_of_work() as unit:
        unit.set_mlflow_run(stream.name, run_id)
    _log_report(context, run_id, stream, stream_report(context.registry, stream.name))
    sync_strategy_runs(context, stream.name, run_id)
    sync_stream_model(context, stream, run_id)
    with context.registry.unit_of_work() as unit:
        delete_sent(unit, pending)


def _ensure_stream_run(context: MlflowClientContext, stream: StoredStream) -> str:
    key = context.key("stream", stream.name)
    run = context.active_run(stream.mlflow_run) or next(iter(context.find_runs("key", key)), None)
    if run is None:
        tags = context.run_tags(key, name=stream.name, stream=stream.name, backbone=stream.backbone)
        run = context.client.create_run(context.experiment, start_time=to_millis(stream.created_at), tags=tags)
    settings = flatten({name: value for name, value in stream.spec.items() if name != "tasks"})
    missing = {name: value for name, value in settings.items() if name not in run.data.params}
    context.log(run.info.run_id, missing, {}, timestamp=stream.created_at)  # MLflow never changes a parameter's value
    return str(run.info.run_id)


def _log_report(context: MlflowClientContext, run_id: str, stream: StoredStream, report: Document) -> None:
    """Log the measures after the tasks learned so far, both matrices as heat maps, and the report itself."""
    from continual.reports.html import stream_page  # imports matplotlib, which is slow: only when something is sent
    from continual.reports.plots import confusion_map, confusion_shares, heatmap

    learned = [position.delta for position in stream.positions if position.delta]
    timestamp = context.registry.delta(learned[-1]).created_at if learned else stream.created_at
    for mode in ("oracle", "routed"):
        measures = {
            name: report[mode].get(name) for name in (*ContinualMeasures.__dataclass_fields__, *ROUTING_MEASURES)
        }
        metrics = {(f"{mode}_{name}", len(learned)): value for name, value in measures.items() if value is not None}
        context.log(run_id, {}, metrics, timestamp=timestamp)
        figure = heatmap(report[mode]["matrix"], report["tasks"], title=f"{report['stream']}, {mode}")
        context.client.log_figure(run_id, figure, f"matrix_{mode}.png")
    confusion = confusion_shares(report["routed"]["confused"], report["tasks"])
    context.client.log_figure(run_id, confusion_map(confusion, report["tasks"]), "confusion.png")
    context.client.log_dict(run_id, report, "report.json")
    context.client.log_text(run_id, stream_page(context.registry, report), "report.html")
    _set_status(context, run_id, stream, learned_at=timestamp)


def _set_status(context: MlflowClientContext, run_id: str, stream: StoredStream, *, learned_at: datetime) -> None:
    """Set the status; a run's time is that of learning, not of sending."""
    states = {position.state for position in stream.positions}
    if states <= {"learned", "failed"}:
        status = "FAILED" if "failed" in states else "FINISHED"
        context.client.set_terminated(run_id, status, end_time=to_millis(learned_at))
    else:
        context.client.update_run(run_id, status="RUNNING")


def sync_strategy_runs(context: MlflowClientContext, stream: str, stream_run_id: str) -> None:
    """Create the missing runs of finished strategies, and log their comparison to the stream's run."""
    strategies = latest_finished_runs(context.registry, stream)
    if not strategies:
        return
    from continual.reports.plots import comparison_figure  # imports matplotlib, as above

    document = comparison(context.registry, stream, strategies, isolated=True)
    reports = {report["strategy"]: report for report in document["strategies"]}
    for strategy in strategies:
        if context.active_run(strategy.mlflow_run) is None:
            run_id = _ensure_strategy_run(context, strategy, reports[strategy.strategy], parent=stream_run_id)
            with context.registry.unit_of_work() as unit:
                note_strategy_run(unit, strategy.id, run_id)
    context.client.log_figure(stream_run_id, comparison_figure(document), "strategies.png")
    context.client.log_dict(stream_run_id, document, "strategies.json")


def _ensure_strategy_run(
    context: MlflowClientContext, strategy: StoredStrategy, report: Document, *, parent: str
) -> str:
    """Return a finished run that the registry does not know yet, or a new one; delete unfinished ones."""
    key = context.key("strategy", strategy.stream, strategy.strategy, strategy.recipe)
    for run in context.find_runs("key", key):
        if run.info.status == "FINISHED":
            return str(run.info.run_id)
        context.client.delete_run(run.info.run_id)
    tags = context.run_tags(key, name=strategy.strategy, strategy=strategy.strategy, stream=strategy.stream)
    tags |= {"mlflow.parentRunId": parent}
    start_time, timestamp = to_millis(strategy.created_at), strategy.finished_at or strategy.created_at
    run_id: str = context.client.create_run(context.experiment, start_time=start_time, tags=tags).info.run_id
    context.log(run_id, flatten(strategy.settings), _strategy_metrics(report), timestamp=timestamp)
    context.client.set_terminated(run_id, end_time=to_millis(timestamp))
    return run_id


def _strategy_metrics(report: Document) -> dict[tuple[str, int], float]:
    """Return the measures after the last task, and the mean score on the tasks so far after each task."""
    task_count = len(report["tasks"])
    final = {f"{mode}_{name}": report[mode].get(name) for mode, name in MEASURE_PATHS.values()}
    final |= {name: report[name] for name in ("parameters", "bytes", "seconds")}
    metrics = {(name, task_count): value for name, value in final.items()}
    metrics |= {
        ("oracle_acc_so_far", step): value for step, value in enumerate(average_accuracy_curve(report), start=1)
    }
    return {name_and_step: value for name_and_step, value in metrics.items() if value is not None}
