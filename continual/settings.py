"""Where things are kept: one folder, each part of which can be put elsewhere."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_HOME = Path("continual-home")
FALSE_ABSTENTION_RATE = 0.05  # of the inputs of known tasks, the share that may be taken for those of none
FULL_FINE_TUNING_LR, EWC_STRENGTH, REPLAY_ROWS = 1e-4, 100.0, 20  # of the strategies that a stream is compared with
MIN_TASK_PROBABILITY = 0.1  # the probability of a task that is named beside the likeliest, where all are asked for


@dataclass(frozen=True)
class Locations:
    """The places of one installation.

    home: folder of all that is not placed elsewhere · registry: database URL · blobs: folder or URL of fsspec ·
    mlflow: tracking URI · artifacts: folder of MLflow's artifacts, None where a server decides.
    """

    home: Path
    registry: str = field(repr=False)  # URLs may hold passwords
    blobs: str = field(repr=False)
    mlflow: str = field(repr=False)
    artifacts: str | None


def resolve_locations(home: Path | str = DEFAULT_HOME, environment: Mapping[str, str] = os.environ) -> Locations:
    """The places under `home`, save those that CONTINUAL_REGISTRY_URL, CONTINUAL_BLOBS_URL or MLFLOW_TRACKING_URI name.

    >>> settings("/srv/home", {"CONTINUAL_BLOBS_URL": "s3://bucket/blobs"}).blobs
    's3://bucket/blobs'
    """
    folder = Path(home).expanduser().absolute()
    tracking = environment.get("MLFLOW_TRACKING_URI")
    return Locations(
        home=folder,
        registry=environment.get("CONTINUAL_REGISTRY_URL") or f"sqlite:///{folder / 'registry.db'}",
        blobs=environment.get("CONTINUAL_BLOBS_URL") or str(folder / "blobs"),
        mlflow=tracking or f"sqlite:///{folder / 'mlflow.db'}",
        artifacts=None if tracking else (folder / "mlflow-artifacts").as_uri(),
    )
