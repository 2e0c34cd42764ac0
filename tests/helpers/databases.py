"""Databases and object stores for registries; a test that takes `database` runs once per database."""

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
    """A PostgreSQL server of this test session; without one tests are skipped, or fail where `CI` is set."""
    if tool("initdb") is None:
        missing = "PostgreSQL is not installed (Debian: apt-get install postgresql)"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    with running() as server:
        yield server


@contextmanager
def empty_database(server: Server) -> Iterator[str]:
    """Yield the URL of an empty database that is dropped afterwards."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(server.url().replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        yield server.url(name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgres_url(postgres: Server) -> Iterator[str]:
    """The URL of an empty PostgreSQL database."""
    with empty_database(postgres) as url:
        yield url


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a bucket in an S3 server on loopback."""
    if missing := [name for name in ("moto", "s3fs") if importlib.util.find_spec(name) is None]:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{missing} is not installed (extra `dev`)")
    with running_bucket() as url:
        yield url


@contextmanager
def running_bucket() -> Iterator[str]:
    """Yield the URL of a bucket in an S3 server of this process; meanwhile the environment names the server."""
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
        get_filesystem_class("s3").clear_instance_cache()  # cached instances use an earlier test's server
        name = f"tests-{uuid4().hex}"  # buckets outlive their server
        filesystem("s3").mkdir(name)
        yield f"s3://{name}"
    server.stop()


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database; `registry_url(tmp_path)` returns it too."""
    if request.param == "sqlite":
        return registry_url(tmp_path)
    url: str = request.getfixturevalue("postgres_url")
    (tmp_path / URL_FILE).write_text(url)
    return url


@pytest.fixture(scope="module", params=DATABASES)
def shared_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose `registry_url` names one empty database for all tests of a module that only read."""
    folder = tmp_path_factory.mktemp("shared")
    if request.param == "sqlite":
        yield folder
        return
    with empty_database(request.getfixturevalue("postgres")) as url:
        (folder / URL_FILE).write_text(url)
        yield folder


def registry_url(folder: Path) -> str:
    """Return the registry's URL for a test in `folder`: a SQLite file unless a fixture stored another URL."""
    url_file = folder / URL_FILE
    return url_file.read_text() if url_file.exists() else f"sqlite:///{folder}/home/registry.db"
