"""The databases and the store that a registry may be in; every test that asks for `database` runs once in each."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from tests.helpers.postgres_server import Server, running, tool

DATABASES = ("sqlite", "postgresql")
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


@contextmanager
def _empty(server: Server) -> Iterator[str]:
    """The URL of an empty database, which is gone afterwards."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(server.url().replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        yield server.url(name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgres_url(postgres: Server) -> Iterator[str]:
    """An empty database."""
    with _empty(postgres) as url:
        yield url


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of a store that speaks Amazon's own protocol, on loopback."""
    if missing := [name for name in ("moto", "s3fs") if importlib.util.find_spec(name) is None]:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{missing} is not installed (extra `dev`)")
    from fsspec import filesystem, get_filesystem_class
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        get_filesystem_class("s3").clear_instance_cache()  # what is kept speaks to the server of before
        name = f"tests-{uuid4().hex}"  # buckets outlive their server
        filesystem("s3").mkdir(name)
        yield f"s3://{name}"
    server.stop()


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, which `registry_url(tmp_path)` says too."""
    if request.param == "sqlite":
        return registry_url(tmp_path)
    url: str = request.getfixturevalue("postgres_url")
    (tmp_path / URL_FILE).write_text(url)
    return url


@pytest.fixture(scope="module", params=DATABASES)
def shared_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose `registry_url` is empty once for all tests of a module: for those that only read."""
    folder = tmp_path_factory.mktemp("shared")
    if request.param == "sqlite":
        yield folder
        return
    with _empty(request.getfixturevalue("postgres")) as url:
        (folder / URL_FILE).write_text(url)
        yield folder


def registry_url(folder: Path) -> str:
    """Where the registry of a test in `folder` is: a file under it unless a fixture said otherwise."""
    said = folder / URL_FILE
    return said.read_text() if said.exists() else f"sqlite:///{folder}/home/registry.db"
