"""MLflow, and what a registry needs of it: an experiment, and runs that are found again."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from continual.settings import Locations
from registry import Registry, redact, registry_identity

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "continual"
TRAINING = {"mlflow.experimentKind": "custom_model_development"}  # opens the pages on runs, not on chat traces
MILLISECONDS = 1000  # in a second: MLflow's unit of time
LARGEST_BATCH = 500  # metrics in one call, of the thousand that MLflow takes
LONGEST_PARAMETER = 500  # what MLflow takes of a parameter's value, in characters
LONGEST_NAME = 250  # of a run, in characters
# An MLflow that is away must fail soon, is not told who uses what, and looks for no project in the current folder.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # which holds our answer, and nothing else
}
ESCAPE = "="
LONGEST = 160  # bytes; a file's name may have 255, a model's 256
SHORT = 16  # hexadecimal digits of a digest that stands for the rest of a longer name


class DependencyPendingError(Exception):
    """Something else must be told first."""


@dataclass(frozen=True)
class MlflowClientContext:
    """One connection to MLflow: where the runs go (an experiment's id), and what the registry is called there."""

    registry: Registry
    client: "MlflowClient"
    experiment: str
    name: str
    locations: Locations

    def key(self, *parts: str) -> str:
        """What a run or a task of this registry is found by: a digest, because names may hold any sign."""
        return sha256("\n".join((self.name, *parts)).encode(errors="surrogatepass")).hexdigest()

    def run_tags(self, key: str, *, name: str, **own: str) -> dict[str, str]:
        """The tags of a run: what it shows, and by which it is found again."""
        where = {"registry": self.name, "registry_url": redact(self.locations.registry), "key": key}
        return {"mlflow.runName": name[:LONGEST_NAME]} | {f"continual.{tag}": v for tag, v in (where | own).items()}

    def find_runs(self, tag: str, key: str, *, deleted: bool = False) -> Sequence["Run"]:
        """The runs whose tag is `key`, a digest; with `deleted`, those in MLflow's bin too."""
        from mlflow.entities import ViewType

        view = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY
        found: Sequence[Run] = self.client.search_runs([self.experiment], f"tags.`continual.{tag}` = '{key}'", view)
        return found

    def active_run(self, identity: str | None) -> "Run | None":
        """The run of that id; None where MLflow does not have it any more, or is another MLflow."""
        from mlflow.exceptions import MlflowException

        if identity is None:
            return None
        try:
            found = self.client.get_run(identity)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return found if found.info.lifecycle_stage == "active" else None

    def log(
        self, run: str, parameters: Mapping[str, Any], metrics: Mapping[tuple[str, int], float], *, at: datetime
    ) -> None:
        """Logs metrics by name and step. `at` must not depend on when this is sent: sent twice, they are one."""
        from mlflow.entities import Metric, Param

        points = [Metric(name, value, timestamp=to_millis(at), step=step) for (name, step), value in metrics.items()]
        self.client.log_batch(run, params=[Param(k, str(v)[:LONGEST_PARAMETER]) for k, v in parameters.items()])
        for first in range(0, len(points), LARGEST_BATCH):
            self.client.log_batch(run, metrics=points[first : first + LARGEST_BATCH])


def connect(registry: Registry, places: Locations) -> MlflowClientContext:
    """The tracking store that `places` names, with our experiment in it."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow"):  # a new database would be set up aloud
        logging.getLogger(name).setLevel(logging.WARNING)
    client = MlflowClient(tracking_uri=places.mlflow)
    return MlflowClientContext(registry, client, _experiment(client, places), registry_identity(registry), places)


def to_millis(moment: datetime) -> int:
    """MLflow's time."""
    return int(moment.timestamp() * MILLISECONDS)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _experiment(client: "MlflowClient", places: Locations) -> str:
    """The id of our experiment, whose artifacts lie under the home: MLflow's default is the current folder."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found:
        return str(found.experiment_id)
    return str(client.create_experiment(EXPERIMENT, artifact_location=places.artifacts, tags=TRAINING))


def escape_name(name: str) -> str:
    """`name` with `=` and two digits for each byte of other signs than letters and digits; `quopri` turns it back.

    A name that would be too long is cut, and its digest added.

    >>> import quopri
    >>> plain("../news/2024:sport"), quopri.decodestring(plain("../news/2024:sport")).decode()
    ('=2E.=2Fnews=2F2024=3Asport', '../news/2024:sport')
    """
    signs = [_escaped(sign, first=place == 0) for place, sign in enumerate(name)]
    if len("".join(signs).encode()) <= LONGEST:
        return "".join(signs)
    while len("".join(signs).encode()) > LONGEST - SHORT - 2 * len(ESCAPE):
        signs.pop()
    return f"{''.join(signs)}{ESCAPE * 2}{sha256(name.encode(errors='surrogatepass')).hexdigest()[:SHORT]}"


def _escaped(sign: str, *, first: bool) -> str:
    if sign.isalnum() or sign in "-_@" or (sign == "." and not first):
        return sign
    return "".join(f"{ESCAPE}{byte:02X}" for byte in sign.encode(errors="surrogatepass"))
