"""Storage locations under one home folder or set by environment variables, and command defaults."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DISTRIBUTION = "continual-deltas"  # on the package index, where `continual` is another product
DEFAULT_HOME = Path("continual-home")
FALSE_ABSTENTION_RATE = 0.05  # share of the inputs of known tasks that may be abstained on
FULL_FINE_TUNING_LR, EWC_STRENGTH, REPLAY_ROWS = 1e-4, 100.0, 20  # of the strategies that a stream is compared with
MIN_TASK_PROBABILITY = 0.1  # least probability of a task that is listed beside the likeliest one


@dataclass(frozen=True)
class Locations:
    """The storage locations of one installation.

    Attributes:
        home: Folder of everything that is not located elsewhere.
        registry: Database URL of the registry.
        blobs: Folder or fsspec URL of the blobs.
        mlflow: MLflow's tracking URI.
        artifacts: Folder of MLflow's artifacts, None where a tracking server decides.
    """

    home: Path
    registry: str = field(repr=False)  # URLs may hold passwords
    blobs: str = field(repr=False)
    mlflow: str = field(repr=False)
    artifacts: str | None


def resolve_locations(home: Path | str = DEFAULT_HOME, environment: Mapping[str, str] = os.environ) -> Locations:
    """Return the locations under `home`, each overridden by its environment variable.

    The variables are CONTINUAL_REGISTRY_URL, CONTINUAL_BLOBS_URL and MLFLOW_TRACKING_URI.

    >>> resolve_locations("/srv/home", {"CONTINUAL_BLOBS_URL": "s3://bucket/blobs"}).blobs
    's3://bucket/blobs'
    """
    from registry import sqlite_url  # with SQLAlchemy, which `continual --help` does without

    folder = Path(home).expanduser().absolute()
    tracking = environment.get("MLFLOW_TRACKING_URI")
    return Locations(
        home=folder,
        registry=environment.get("CONTINUAL_REGISTRY_URL") or sqlite_url(folder / "registry.db"),
        blobs=environment.get("CONTINUAL_BLOBS_URL") or str(folder / "blobs"),
        mlflow=tracking or sqlite_url(folder / "mlflow.db"),
        artifacts=None if tracking else (folder / "mlflow-artifacts").as_uri(),
    )
