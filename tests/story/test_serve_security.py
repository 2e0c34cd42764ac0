"""What the server promises to strangers and hostile clients: docs/reference/security.md lists these tests."""

# ruff: noqa: F811 (fixtures are imported by their names)

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from continual import Learner
from continual.serve import Limits
from registry import Registry, add_key
from registry.errors import DatabaseUnavailable, RegistryError
from tests.helpers.hostile_bodies import HOSTILE
from tests.helpers.live_server import (  # noqa: F401
    POLL,
    Server,
    ask,
    error_body,
    folder,
    forget_keys,
    learner,
    missing_blob,
    served,
    server,
    wait_until,
)

JSON = {"content-type": "application/json"}
MB = 1 << 20
NAMES = ["\0", "mood\0", "a\0b@1", "\0" * 1000]
LEAKS = ("SELECT", "db.internal", "5432", "/secret/", "_without_surrogates", "function-after", "Value error")


@contextmanager
def health(running: Server, slowest: list[float]) -> Iterator[None]:
    """Ask `/healthz` over and over while the block runs; note the seconds of the slowest answer."""
    done = Event()

    def ask_on() -> None:
        while not done.is_set():
            start = time.monotonic()
            assert running.client.get("/healthz").status_code == 200
            slowest[0] = max(slowest[0], time.monotonic() - start)
            time.sleep(0.01)

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask_on)
        try:
            yield
        finally:
            done.set()
            asking.result(60)


def test_hostile_bodies_cost_little_and_stop_nobody(learner: Learner) -> None:
    process, slowest = psutil.Process(), [0.0]
    with server(learner) as running:
        assert running.client.get("/readyz").status_code == 200  # it has started
        before = process.memory_info().rss
        with health(running, slowest):
            for path in ("/v1/predict", "/v1/completions", "/v1/chat/completions", "/v1/embeddings"):
                for name, body in HOSTILE.items():
                    start = time.monotonic()
                    response = running.client.post(path, content=body, headers=JSON)
                    error_body(response, response.status_code)
                    assert response.status_code in (413, 422), (path, name)
                    assert len(response.content) < 2000
                    assert time.monotonic() - start < 10, (path, name)
            with ThreadPoolExecutor(8) as pool:
                posts = [
                    pool.submit(running.client.post, "/v1/predict", content=HOSTILE["objects"], headers=JSON)
                    for _ in range(8)
                ]
                assert {post.result().status_code for post in posts} == {413}
        assert process.memory_info().rss - before < 1024 * MB
        assert ask(running, {"text": "a", "task": "mood"}).status_code == 200
    assert slowest[0] < 1, slowest


def test_validation_ends_at_the_first_error(served: Server) -> None:
    response = served.client.post("/v1/predict", json={"rows": [{"text": 1}] * 1024})
    assert response.json()["error"]["param"] == "body.rows.0.text"


def test_a_body_is_not_awaited_without_a_key(learner: Learner) -> None:
    with server(learner, local=False) as running:
        url = running.client.base_url
        with socket.create_connection((url.host, url.port)) as connection:
            connection.sendall(
                b"POST /v1/predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                b"content-length: 1000000\r\n\r\n"
            )
            connection.settimeout(5)
            assert connection.recv(1000).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("name", NAMES)
def test_names_that_no_database_holds_are_not_found(served: Server, name: str) -> None:
    get, post = served.client.get, served.client.post
    responses = [
        get("/v1/tasks", params={"after": name}),
        get("/v1/deltas", params={"task": name}),
        get("/v1/deltas", params={"after": name}),
        get("/v1/lineage", params={"delta": name}),
        get("/v1/similar", params={"task": name}),
        get("/v1/report", params={"stream": name}),
        get(f"/v1/models/{name.replace(chr(0), '%00')}"),
        ask(served, {"text": "a", "task": name}),
        post("/v1/completions", json={"model": name, "prompt": "a"}),
        post("/v1/chat/completions", json={"model": name, "messages": [{"role": "user", "content": "a"}]}),
        post("/v1/embeddings", json={"model": name, "input": "a"}),
    ]
    for response in responses:
        error_body(response, response.status_code)
        assert response.status_code in (404, 422), response.url
        assert not any(leak in response.text for leak in LEAKS), response.text


@pytest.mark.parametrize(
    "body",
    [
        {"rows": [{"text": "\ud800"}]},
        {"rows": [{"text": ["a", 1]}]},
        {"rows": [{"text": {"a": 1}}]},
        {"rows": [{"text": "a", "task": 1}]},
        {"rows": "a"},
    ],
)
def test_messages_name_fields_and_not_validators(served: Server, body: Any) -> None:
    response = served.client.post("/v1/predict", content=json.dumps(body), headers=JSON)
    assert error_body(response, 422)
    assert not any(leak in response.text for leak in (*LEAKS, "tuple[", "constrained"))


@pytest.mark.parametrize("error", [RegistryError, DatabaseUnavailable])
def test_causes_of_failures_stay_in_the_log(
    learner: Learner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: type[Exception]
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error("db.internal port 5432 does not answer (in: SELECT tasks.name FROM tasks) for /secret/file")

    with server(learner) as running:
        assert running.client.get("/readyz").status_code == 200  # it has started
        for method in ("tasks", "task", "deltas", "streams"):
            monkeypatch.setattr(Registry, method, fail)
        for response in (
            running.client.get("/v1/tasks"),
            running.client.get("/v1/deltas"),
            running.client.get("/v1/streams"),
            running.client.get("/v1/models/unknown"),
            ask(running, {"text": "a", "task": "unknown"}),
        ):
            assert "log of the server" in error_body(response, 503)
            assert not any(leak in response.text for leak in LEAKS)
    assert "db.internal" in caplog.text


def test_answers_without_a_delta_do_not_say_where_it_was(learner: Learner) -> None:
    with missing_blob(learner, "mood"), server(learner) as running:
        (answer,) = ask(running, {"text": "a", "task": "mood"}).json()["predictions"]
    assert "BlobError" in answer["error"]
    assert str(learner.registry.blobs.url) not in answer["error"]


@pytest.mark.parametrize("letter", ["a", "\0", "\U0001f600"])
def test_errors_quote_two_hundred_characters_at_most(served: Server, letter: str) -> None:
    post, long = served.client.post, letter * 500_000
    responses = [
        ask(served, {"text": "a", "task": long}),
        post("/v1/predict", json={"rows": [{"text": "a"}], long: 1}),
        post("/v1/completions", json={"model": long, "prompt": "a"}),
        post("/v1/embeddings", json={"model": long, "input": "a"}),
        served.client.get("/v1/tasks", headers={"host": "a" * 10_000}),
        served.client.get("/v1/lineage", params={"delta": letter * 2_000}),
        post("/v1/predict", json={"rows": [{"text": "a"}]}, headers={"x-request-timeout": "a" * 10_000}),
    ]
    for response in responses:
        message = error_body(response, response.status_code)
        assert response.status_code in (400, 404, 422)
        assert letter * 201 not in message
        assert "a" * 201 not in message
        assert len(response.content) < 8000


def test_requests_end_in_time_while_the_registry_does_not_answer(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = Event()

    def hang(*_: Any, **__: Any) -> Any:
        back.wait(60)
        raise RegistryError("away")

    with server(learner, limits=Limits(seconds=1)) as running, ThreadPoolExecutor(64) as pool:
        assert running.client.get("/readyz").status_code == 200  # it has started
        for method in ("task", "tasks", "deltas", "lineage", "streams", "champions", "active_keys"):
            monkeypatch.setattr(Registry, method, hang)
        try:
            start = time.monotonic()
            get = running.client.get
            asked = [
                *(pool.submit(ask, running, {"text": "a", "task": f"unknown {i}"}) for i in range(40)),
                *(pool.submit(get, path) for path in ("/v1/tasks", "/v1/deltas", "/v1/streams", "/v1/models/unknown")),
                pool.submit(running.client.post, "/v1/completions", json={"model": "unknown", "prompt": "a"}),
                pool.submit(running.client.post, "/v1/refresh"),
            ]
            time.sleep(0.2)
            assert ask(running, {"text": "a", "task": "mood"}).status_code == 200
            body = {"model": "echo", "prompt": "a"}
            assert running.client.post("/v1/completions", json=body).status_code == 200
            assert {future.result().status_code for future in asked} == {504}
            assert time.monotonic() - start < 5
        finally:
            back.set()


@pytest.mark.parametrize("path", ["/openapi.json", "/v1/tasks", "/metrics", "/v1/nothing", "/healthz/"])
def test_every_path_but_pages_and_probes_needs_a_key(learner: Learner, path: str) -> None:
    secret = add_key(learner.registry, path, role="read")
    try:
        with server(learner, local=False) as running:
            error_body(running.client.get(path), 401)
            head = {"authorization": f"Bearer {secret}"}
            assert running.client.get(path, headers=head).status_code != 401
            for open_path in ("/", "/docs", "/healthz", "/readyz"):
                assert running.client.get(open_path).status_code == 200
    finally:
        forget_keys(learner)
