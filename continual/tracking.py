"""MLflow as a projection of the registry: everything it shows is read from there, whenever MLflow can be reached.

One run per stream and, nested in it, one per delta. A delta whose run MLflow has not acknowledged stays pending in the
registry, so what was missed while MLflow was away is sent by the next `project`.
"""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from continual.errors import InputError
from continual.forgetting import Measures
from continual.plots import heat_map
from continual.report import Document, report
from continual.settings import Settings
from registry import Registry, StoredDelta, StoredScore

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

EXPERIMENT = "continual"
TRAINING = {"mlflow.experimentKind": "custom_model_development"}  # opens the pages on runs, not on chat traces
MILLISECONDS = 1000  # in a second: MLflow's unit of time
LARGEST_BATCH = 500  # metrics in one call, of the thousand that MLflow takes
LONGEST_PARAMETER = 500  # what MLflow takes of a parameter's value, in characters
# An MLflow that is away must not hold the stream up for minutes, nor is it told who uses what.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def project(registry: Registry, places: Settings, *, stream: str | None = None) -> bool:
    """Send MLflow all deltas that it lacks and bring their streams' runs, and `stream`'s, up to date."""
    pending = registry.pending_mlflow()
    if not pending and stream is None:
        return True
    try:
        _Projection(registry, places).send(pending, stream)
    except Exception as error:  # MLflow raises what its store, its HTTP client or its database raises
        log.warning(
            "MLflow at %s could not be told of %d deltas, which will be sent later: %s: %s",
            places.mlflow,
            len(pending),
            type(error).__name__,
            (str(error).splitlines() or [""])[0],
        )
        return False
    return True


class _Projection:
    """One connection to MLflow."""

    def __init__(self, registry: Registry, places: Settings) -> None:
        self.registry = registry
        self.client = connect(places)
        self.experiment = experiment(self.client, places)

    def send(self, pending: tuple[StoredDelta, ...], also: str | None) -> None:
        streams = {p.delta: stream.name for stream in self.registry.streams() for p in stream.positions if p.delta}
        concerned = {streams[delta.name] for delta in pending if delta.name in streams} | ({also} if also else set())
        parents = {name: self._stream_run(name) for name in sorted(concerned)}
        for delta in pending:
            run = self._delta_run(delta, parent=parents.get(streams.get(delta.name, "")))
            with self.registry.unit() as unit:
                unit.set_mlflow_run(delta.name, run)
        for name, run in parents.items():
            self._summarise(run, report(self.registry, name))

    def _stream_run(self, stream: str) -> str:
        stored = self.registry.stream(stream)
        if stored.mlflow_run:
            return stored.mlflow_run
        tags = {"mlflow.runName": stream, "continual.stream": stream, "continual.backbone": stored.backbone}
        run: str = self.client.create_run(self.experiment, tags=tags).info.run_id
        settings = {key: value for key, value in stored.spec.items() if key != "tasks"}
        self._log(run, _flat(settings), {})
        with self.registry.unit() as unit:
            unit.set_mlflow_run(stream, run)
        return run

    def _delta_run(self, delta: StoredDelta, *, parent: str | None) -> str:
        """The run of a delta, made anew where an earlier attempt broke off half-way."""
        for stale in self.client.search_runs([self.experiment], f"tags.`continual.digest` = '{delta.digest}'"):
            if stale.data.tags.get("continual.delta") == delta.name:
                self.client.delete_run(stale.info.run_id)
        end = int(delta.created_at.timestamp() * MILLISECONDS)
        began = end - int(delta.seconds * MILLISECONDS)
        run: str = self.client.create_run(self.experiment, start_time=began, tags=self._tags(delta, parent)).info.run_id
        scores = self.registry.scores(delta=delta.name)
        self._log(
            run, _parameters(delta), {(_name(score), score.step): score.value for score in scores if not score.stream}
        )
        with TemporaryDirectory() as folder:
            file = Path(folder) / f"{delta.name}.safetensors"
            file.write_bytes(self.registry.blobs.get(delta.values))
            self.client.log_artifact(run, str(file), "delta")
        self.client.set_terminated(run, end_time=end)
        return run

    def _tags(self, delta: StoredDelta, parent: str | None) -> dict[str, str]:
        lineage = [edge for edge in self.registry.lineage(delta.name) if edge["depth"] == 1]
        tags = {
            "mlflow.runName": delta.name,
            "continual.delta": delta.name,
            "continual.digest": delta.values,
            "continual.backbone": delta.backbone,
            "continual.warm_start": delta.warm_start,
            "continual.parents": ", ".join(edge["parent"] for edge in lineage),
        }
        return tags | ({"mlflow.parentRunId": parent} if parent else {})

    def _summarise(self, run: str, document: Document) -> None:
        """Measures after as many tasks as are learned, both matrices as heat maps, and the report itself."""
        learned = len(document["tasks"])
        for kind in ("oracle", "routed"):
            found = {name: document[kind].get(name) for name in (*Measures.__dataclass_fields__, "routing_accuracy")}
            metrics = {(f"{kind}_{name}", learned): value for name, value in found.items() if value is not None}
            self._log(run, {}, metrics)
            figure = heat_map(document[kind]["matrix"], document["tasks"], title=f"{document['stream']}, {kind}")
            self.client.log_figure(run, figure, f"matrix_{kind}.png")
        self.client.log_dict(run, document, "report.json")
        self.client.set_terminated(run)

    def _log(self, run: str, parameters: Mapping[str, Any], metrics: Mapping[tuple[str, int], float]) -> None:
        from mlflow.entities import Metric, Param

        now = int(time.time() * MILLISECONDS)
        points = [Metric(name, value, timestamp=now, step=step) for (name, step), value in metrics.items()]
        self.client.log_batch(run, params=[Param(k, str(v)[:LONGEST_PARAMETER]) for k, v in parameters.items()])
        for first in range(0, len(points), LARGEST_BATCH):
            self.client.log_batch(run, metrics=points[first : first + LARGEST_BATCH])


def connect(places: Settings) -> "MlflowClient":
    """A client of the tracking store."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow"):  # a new database would be set up aloud
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=places.mlflow)


def experiment(client: "MlflowClient", places: Settings) -> str:
    """The id of our experiment, whose artifacts lie under the home: MLflow's default is the current folder."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found:
        return str(found.experiment_id)
    return str(client.create_experiment(EXPERIMENT, artifact_location=places.artifacts, tags=TRAINING))


def _parameters(delta: StoredDelta) -> dict[str, Any]:
    kept = ("task", "kind", "method", "settings", "parameters", "share", "bytes", "seed", "warm_start", "version")
    return _flat({name: getattr(delta, name) for name in kept} | {"labels": len(delta.labels)})


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _name(score: StoredScore) -> str:
    """A metric's name in MLflow: `test_accuracy` is the delta's own score, others say what they are."""
    return f"{score.split}_{score.metric}" if score.mode == "oracle" else f"{score.mode}_{score.split}_{score.metric}"


def serve_ui(places: Settings, *, host: str, port: int) -> int:
    """Serve MLflow's pages until interrupted; the exit code of its server.

    Raises InputError where the tracking URI is a server of its own, whose pages are already there.
    """
    if places.mlflow.startswith(("http://", "https://")):
        raise InputError(f"MLflow runs at {places.mlflow} already; open that address")
    server = ("ui", "--backend-store-uri", places.mlflow, "--host", host, "--port", str(port))
    return subprocess.call([sys.executable, "-m", "mlflow", *server], env=os.environ | PATIENCE)
