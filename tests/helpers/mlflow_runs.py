"""A registry with an MLflow store beside it, and what child processes do with both."""

import atexit
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from continual.settings import Locations, resolve_locations
from continual.tracking import flush_outbox
from continual.tracking.local_store import ensure_local_store
from registry import Registry
from tests.helpers.databases import registry_url
from tests.helpers.registries import make_registry


@cache
def empty_store() -> Path:
    """An empty MLflow database of this process; making one takes more than a second of processor time."""
    folder = Path(mkdtemp(prefix="continual-mlflow-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with Registry.empty(str(folder / "blobs")) as registry:
        ensure_local_store(registry, places_of(folder))
    return folder / "home" / "mlflow.db"


def copy_empty_store(home: Path) -> None:
    """Put an empty MLflow database into a home that has none."""
    home.mkdir(exist_ok=True)
    if not (home / "mlflow.db").exists():
        shutil.copy(empty_store(), home / "mlflow.db")


def places_of(folder: Path) -> Locations:
    return replace(resolve_locations(folder / "home", {}), registry=registry_url(folder))


def sync_together(folder: Path, start: Any, errors: Any) -> None:
    """Wait for the start, send all pending messages, and report the errors."""
    with make_registry(folder) as registry:
        start.wait()
        errors.put([sent.error for sent in flush_outbox(registry, places_of(folder)) if sent.error])


def sync_all(registry: Registry, places: Locations) -> list[tuple[str, str]]:
    """Send all pending messages, none of which may fail; the messages sent."""
    sent = list(flush_outbox(registry, places))
    errors = [each.error for each in sent if each.error]
    assert errors == [], errors
    return [(each.pending.message, each.pending.subject) for each in sent]


def client_of(places: Locations) -> MlflowClient:
    return MlflowClient(tracking_uri=places.mlflow)


def runs_of(places: Locations) -> list[Run]:
    client = client_of(places)
    return list(client.search_runs([client.get_experiment_by_name("continual").experiment_id]))


def names_of(places: Locations) -> list[str]:
    return sorted(run.info.run_name for run in runs_of(places))
