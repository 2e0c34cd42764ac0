"""An MLflow store that is copied, since making one takes seconds, and a registry beside it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from continual.settings import Locations
from continual.tracking.local_store import ensure_local_store
from registry import Registry
from tests.helpers.mlflow_runs import places_of
from tests.helpers.registries import make_registry


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database."""
    folder = tmp_path_factory.mktemp("mlflow")
    with Registry.empty(str(folder / "blobs")) as registry:
        ensure_local_store(registry, places_of(folder))
    return folder / "home" / "mlflow.db"


@pytest.fixture
def places(tmp_path: Path, empty_mlflow: Path) -> Locations:
    (tmp_path / "home").mkdir()
    shutil.copy(empty_mlflow, tmp_path / "home" / "mlflow.db")
    return places_of(tmp_path)


@pytest.fixture
def registry(tmp_path: Path, places: Locations) -> Iterator[Registry]:
    with make_registry(tmp_path) as opened:
        yield opened
