"""The run of a stream: its settings, and after every task its measures, its score matrices and its report."""

from continual.forgetting import Measures
from continual.report import Document, report
from continual.tracking.client import Projection, flat
from continual.tracking.strategies import tell_strategies
from continual.tracking.stream_model import tell_stream_model
from registry import Pending, StoredStream, settle

ROUTED = ("routing_accuracy", "abstained")  # what is measured of routing alone


def tell_stream(to: Projection, pending: Pending) -> None:
    """Brings the run and the model of a stream up to date, and makes them where there are none."""
    stream = to.registry.stream(pending.subject)
    run = _run(to, stream)
    with to.registry.unit() as unit:
        unit.set_mlflow_run(stream.name, run)
    _summarise(to, run, stream, report(to.registry, stream.name))
    tell_strategies(to, stream.name, run)
    tell_stream_model(to, stream, run)
    with to.registry.unit() as unit:
        settle(unit, pending)


def _run(to: Projection, stream: StoredStream) -> str:
    key = to.key("stream", stream.name)
    own = {"stream": stream.name, "backbone": stream.backbone}
    known = to.run(stream.mlflow_run) or next(iter(to.runs("key", key)), None)
    tags = to.tags(key, name=stream.name, **own)
    found = known or to.client.create_run(to.experiment, tags=tags)
    settings = flat({name: value for name, value in stream.spec.items() if name != "tasks"})
    missing = {name: value for name, value in settings.items() if name not in found.data.params}
    to.log(found.info.run_id, missing, {}, at=stream.created_at)  # a parameter of MLflow's keeps its first value
    return str(found.info.run_id)


def _summarise(to: Projection, run: str, stream: StoredStream, document: Document) -> None:
    """Measures after as many tasks as are learned, both matrices as heat maps, and the report itself."""
    from continual.page import stream_page  # with matplotlib, which whoever tells nothing starts without
    from continual.plots import confused, confusion_map, heat_map

    learned = [position.delta for position in stream.positions if position.delta]
    at = to.registry.delta(learned[-1]).created_at if learned else stream.created_at
    for kind in ("oracle", "routed"):
        found = {name: document[kind].get(name) for name in (*Measures.__dataclass_fields__, *ROUTED)}
        metrics = {(f"{kind}_{name}", len(learned)): value for name, value in found.items() if value is not None}
        to.log(run, {}, metrics, at=at)
        figure = heat_map(document[kind]["matrix"], document["tasks"], title=f"{document['stream']}, {kind}")
        to.client.log_figure(run, figure, f"matrix_{kind}.png")
    confusion = confused(document["routed"]["confused"], document["tasks"])
    to.client.log_figure(run, confusion_map(confusion, document["tasks"]), "confusion.png")
    to.client.log_dict(run, document, "report.json")
    to.client.log_text(run, stream_page(to.registry, document), "report.html")
    states = {position.state for position in stream.positions}
    if states <= {"learned", "failed"}:
        to.client.set_terminated(run, "FAILED" if "failed" in states else "FINISHED")
    else:
        to.client.update_run(run, status="RUNNING")
