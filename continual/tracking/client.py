"""The connection to MLflow: a registry's experiment, the runs in it, and names that MLflow accepts."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from continual.settings import Locations
from continual.tracking.local_store import EXPERIMENT, ensure_local_store, relocate_artifacts
from registry import Registry, redact, registry_identity

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # opens the pages on runs, not on chat traces
# An unreachable MLflow must fail soon; it collects no telemetry and looks for no project in the current folder.
MLFLOW_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output is for a command's own output only
}

MILLISECONDS = 1000  # milliseconds in a second; MLflow's unit of time
MAX_METRICS_PER_CALL = 500  # metrics in one call; MLflow accepts a thousand
MAX_PARAMETER_LENGTH = 500  # characters of a parameter's value that MLflow accepts
MAX_RUN_NAME_LENGTH = 250  # characters of a run's name
MAX_NAME_BYTES = 160  # bytes of an escaped name; a file's name may have 255, a model's 256
DIGEST_DIGITS = 16  # hexadecimal digits of the digest that replaces the end of a longer name
ESCAPE = "="


class DependencyPendingError(Exception):
    """A run that this message refers to does not exist yet; the message is tried again later."""


@dataclass(frozen=True)
class MlflowClientContext:
    """A connection to MLflow on behalf of one registry.

    Attributes:
        registry: The registry whose contents MLflow shows.
        client: MLflow's client.
        experiment: The id of the experiment that holds the runs.
        name: The registry's identity in tags and keys.
        locations: Where the registry, its blobs and MLflow are.
    """

    registry: Registry
    client: "MlflowClient"
    experiment: str
    name: str
    locations: Locations

    def key(self, *parts: str) -> str:
        """Return a digest that identifies a run or task of this registry; names may hold any character."""
        return sha256("\n".join((self.name, *parts)).encode(errors="surrogatepass")).hexdigest()

    def run_tags(self, key: str, *, name: str, **extra: str) -> dict[str, str]:
        """Return the tags of a run.

        Args:
            key: The run's key, by which `find_runs` finds it.
            name: The name that MLflow shows.
            extra: Further tags, each prefixed with `continual.`.
        """
        tags = {"registry": self.name, "registry_url": redact(self.locations.registry), "key": key} | extra
        return {"mlflow.runName": name[:MAX_RUN_NAME_LENGTH]} | {f"continual.{tag}": v for tag, v in tags.items()}

    def find_runs(self, tag: str, key: str, *, deleted: bool = False) -> Sequence["Run"]:
        """Return the runs whose tag has this value.

        Args:
            tag: The name of the tag, without its prefix `continual.`.
            key: The value, a key of `key`.
            deleted: Also return deleted runs that MLflow still stores.
        """
        from mlflow.entities import ViewType

        view = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY
        runs: Sequence[Run] = self.client.search_runs([self.experiment], f"tags.`continual.{tag}` = '{key}'", view)
        return runs

    def active_run(self, run_id: str | None) -> "Run | None":
        """Return the run of this id; None where this MLflow has no such run, or it is deleted."""
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return None
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def log(
        self,
        run_id: str,
        parameters: Mapping[str, Any],
        metrics: Mapping[tuple[str, int], float],
        *,
        timestamp: datetime,
    ) -> None:
        """Log parameters and metrics of a run.

        Args:
            run_id: The id of the run.
            parameters: The parameters by name.
            metrics: The metrics by name and step.
            timestamp: The time of the metrics. It must not depend on the time of sending: a metric that is sent twice
                with the same timestamp is stored once.
        """
        from mlflow.entities import Metric, Param

        moment = to_millis(timestamp)
        points = [Metric(name, value, timestamp=moment, step=step) for (name, step), value in metrics.items()]
        params = [Param(name, str(value)[:MAX_PARAMETER_LENGTH]) for name, value in parameters.items()]
        self.client.log_batch(run_id, params=params)
        for first in range(0, len(points), MAX_METRICS_PER_CALL):
            self.client.log_batch(run_id, metrics=points[first : first + MAX_METRICS_PER_CALL])


def connect(registry: Registry, locations: Locations) -> MlflowClientContext:
    """Connect to the tracking store that `locations` names, and create the experiment where it is missing."""
    for name, value in MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.tracking._tracking_service import utils

    for name in ("alembic", "mlflow"):  # they log every step of setting up a new database
        logging.getLogger(name).setLevel(logging.WARNING)
    ensure_local_store(registry, locations)
    relocate_artifacts(locations)
    utils._artifact_repos_cache.clear()  # by run, and a copied home has the same runs elsewhere
    client = MlflowClient(tracking_uri=locations.mlflow)
    experiment = _ensure_experiment(client, locations)
    return MlflowClientContext(registry, client, experiment, registry_identity(registry), locations)


def _ensure_experiment(client: "MlflowClient", locations: Locations) -> str:
    """Return the experiment's id; a new one stores artifacts under the home."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment:
        return str(experiment.experiment_id)
    return str(client.create_experiment(EXPERIMENT, artifact_location=locations.artifacts, tags=EXPERIMENT_TAGS))


def to_millis(moment: datetime) -> int:
    """Convert a time to MLflow's milliseconds since the epoch."""
    return int(moment.timestamp() * MILLISECONDS)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings into one mapping by dotted names.

    >>> flatten({"budget": {"epochs": 3}, "seed": 0})
    {'budget.epochs': 3, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def escape_name(name: str) -> str:
    """Escape a name for files and models.

    Each byte of a special character becomes `=` and two hexadecimal digits. Letters, digits and `-_@.` are kept;
    `quopri` decodes the result. A name that would be too long is cut, and its digest appended.

    >>> import quopri
    >>> escape_name("../news/2024:sport"), quopri.decodestring(escape_name("../news/2024:sport")).decode()
    ('=2E.=2Fnews=2F2024=3Asport', '../news/2024:sport')
    """
    escaped = [_escape_character(character, first=index == 0) for index, character in enumerate(name)]
    if len("".join(escaped).encode()) <= MAX_NAME_BYTES:
        return "".join(escaped)
    while len("".join(escaped).encode()) > MAX_NAME_BYTES - DIGEST_DIGITS - 2 * len(ESCAPE):
        escaped.pop()
    digest = sha256(name.encode(errors="surrogatepass")).hexdigest()[:DIGEST_DIGITS]
    return f"{''.join(escaped)}{ESCAPE * 2}{digest}"


def _escape_character(character: str, *, first: bool) -> str:
    if character.isalnum() or character in "-_@" or (character == "." and not first):
        return character
    return "".join(f"{ESCAPE}{byte:02X}" for byte in character.encode(errors="surrogatepass"))
