"""The databases that a registry may be in, as fixtures: every test that asks for `database` runs once in each."""

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from postgres import Server, running, tool

URL_FILE = "registry-url"  # in a test's folder, for its child processes too


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A server of this test session's own; a failure instead of a skip where everything must be tested."""
    if tool("initdb") is None:
        missing = "PostgreSQL is not installed (Debian: apt-get install postgresql)"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    with running() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: Server) -> Iterator[str]:
    """An empty database."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(postgres.url().replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        yield postgres.url(name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, which `registry_url(tmp_path)` says too."""
    if request.param == "sqlite":
        return registry_url(tmp_path)
    url: str = request.getfixturevalue("postgres_url")
    (tmp_path / URL_FILE).write_text(url)
    return url


def registry_url(folder: Path) -> str:
    """Where the registry of a test in `folder` is: a file under it unless a fixture said otherwise."""
    said = folder / URL_FILE
    return said.read_text() if said.exists() else f"sqlite:///{folder}/home/registry.db"
