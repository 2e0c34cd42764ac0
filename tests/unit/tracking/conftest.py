"""An MLflow store that is copied, since making one takes seconds, and a registry beside it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from continual.settings import Locations
from registry import Registry
from tests.helpers.mlflow_runs import copy_empty_store, empty_store, places_of
from tests.helpers.registries import make_registry


@pytest.fixture(scope="session")
def empty_mlflow() -> Path:
    """An empty MLflow database."""
    return empty_store()


@pytest.fixture
def places(tmp_path: Path) -> Locations:
    copy_empty_store(tmp_path / "home")
    return places_of(tmp_path)


@pytest.fixture
def registry(tmp_path: Path, places: Locations) -> Iterator[Registry]:
    with make_registry(tmp_path) as opened:
        yield opened
