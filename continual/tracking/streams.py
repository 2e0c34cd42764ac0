"""The run of a stream: its settings, and after every task its measures, its score matrices and its report."""

from continual.forgetting import ContinualMeasures
from continual.report import Document, stream_report
from continual.tracking.client import MlflowClientContext, flatten
from continual.tracking.strategies import sync_strategy_runs
from continual.tracking.stream_model import sync_stream_model
from registry import OutboxMessage, StoredStream, delete_sent

ROUTED = ("routing_accuracy", "abstained")  # what is measured of routing alone


def sync_stream_run(to: MlflowClientContext, pending: OutboxMessage) -> None:
    """Brings the run and the model of a stream up to date, and makes them where there are none."""
    stream = to.registry.stream(pending.subject)
    run = _run(to, stream)
    with to.registry.unit_of_work() as unit:
        unit.set_mlflow_run(stream.name, run)
    _summarise(to, run, stream, stream_report(to.registry, stream.name))
    sync_strategy_runs(to, stream.name, run)
    sync_stream_model(to, stream, run)
    with to.registry.unit_of_work() as unit:
        delete_sent(unit, pending)


def _run(to: MlflowClientContext, stream: StoredStream) -> str:
    key = to.key("stream", stream.name)
    own = {"stream": stream.name, "backbone": stream.backbone}
    known = to.run(stream.mlflow_run) or next(iter(to.runs("key", key)), None)
    tags = to.tags(key, name=stream.name, **own)
    found = known or to.client.create_run(to.experiment, tags=tags)
    settings = flatten({name: value for name, value in stream.spec.items() if name != "tasks"})
    missing = {name: value for name, value in settings.items() if name not in found.data.params}
    to.log(found.info.run_id, missing, {}, at=stream.created_at)  # a parameter of MLflow's keeps its first value
    return str(found.info.run_id)


def _summarise(to: MlflowClientContext, run: str, stream: StoredStream, document: Document) -> None:
    """Measures after as many tasks as are learned, both matrices as heat maps, and the report itself."""
    from continual.page import stream_page  # with matplotlib, which whoever tells nothing starts without
    from continual.plots import confusion_map, confusion_shares, heatmap

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
