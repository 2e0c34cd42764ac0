"""A bucket on a server of Amazon's own protocol, on loopback, as a fixture."""

import importlib.util
import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    if missing := [name for name in ("moto", "s3fs") if importlib.util.find_spec(name) is None]:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{missing} is not installed (extra `dev`)")
    from fsspec import filesystem
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
        filesystem("s3").mkdir("tests")
        yield "s3://tests"
    server.stop()
