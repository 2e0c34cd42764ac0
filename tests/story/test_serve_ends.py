"""Shutdown and failures of the server: termination, kills, disconnecting clients, failed refreshes."""

# ruff: noqa: F811 (fixtures are imported by their names)

import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from continual import Learner
from registry import add_key, revoke_key
from tests.helpers.cli import CliRunner
from tests.helpers.fresh_processes import FreshPython
from tests.helpers.live_server import ask, folder, forget_keys, learner, server, wait_until  # noqa: F401
from tests.helpers.tiny_tasks import rows_of


def test_the_registry_is_polled_again_after_an_error(
    learner: Learner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secret = add_key(learner.registry, "soon gone", role="read")
    head, failed = {"authorization": f"Bearer {secret}"}, threading.Event()

    def fails() -> bool:
        failed.set()
        raise RuntimeError("nobody thought of this")

    try:
        with server(learner) as running:
            assert running.client.get("/v1/tasks", headers=head).status_code == 200
            monkeypatch.setattr(running.serving, "refresh", fails)
            assert failed.wait(20)
            add_key(learner.registry, "stays", role="read")
            revoke_key(learner.registry, "soon gone")
            wait_until(lambda: running.client.get("/v1/tasks", headers=head).status_code == 401)
    finally:
        forget_keys(learner)


def test_requests_of_a_disconnected_client_are_dropped(learner: Learner) -> None:
    with server(learner) as running:
        address = running.client.base_url
        for _ in range(20):
            with socket.create_connection((address.host, address.port)) as gone:
                body = json.dumps(
                    {"rows": [{"text": text, "task": "mood"} for text in rows_of("mood", 64).texts]}
                ).encode()
                gone.sendall(b"POST /v1/predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n")
                gone.sendall(b"content-length: %d\r\n\r\n%s" % (len(body), body))
        assert ask(running, {"text": "a", "task": "mood"}).status_code == 200
        wait_until(lambda: "continual_waiting_rows 0.0" in running.client.get("/metrics").text)


@contextmanager
def process(learner: Learner, home: Path, port: int) -> Iterator[FreshPython]:
    """Run `continual serve` over the same home in another process."""
    words = ["serve", "--home", str(home), "--backbone", learner.backbone.name, "--port", str(port), "--poll", "0.1"]
    words += ["--dtype", "float32", "--no-access-log"]
    running = FreshPython("-c", "from continual.cli import main; main()", *words)
    try:
        wait_until(lambda: running.poll() is not None or ready(port), seconds=120)
        assert running.poll() is None, running.stderr
        yield running
    finally:
        running.kill()


def ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def accepted_rows(port: int) -> float:
    """Return the number of rows that wait or are answered."""
    metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    return sum(map(float, re.findall(r"^continual_(?:waiting_rows|rows_total\{.*\}) (.*)$", metrics, re.MULTILINE)))


def test_a_terminated_server_finishes_accepted_requests(learner: Learner, folder: Path) -> None:
    port = free_port()
    rows = [{"text": " ".join(["cat"] * 20), "task": "mood"}] * 1000
    with process(learner, folder / "home", port) as running, ThreadPoolExecutor(8) as pool:
        url = f"http://127.0.0.1:{port}/v1/predict"
        futures = [pool.submit(httpx.post, url, json={"rows": rows}, timeout=60) for _ in range(8)]
        wait_until(lambda: accepted_rows(port) > 7000)  # so the last of the eight requests too
        running.send_signal(signal.SIGTERM)
        assert [len(future.result().json()["predictions"]) for future in futures] == [1000] * 8
        assert running.wait(30) == 0
    assert not ready(port)


def test_retrying_clients_lose_nothing_when_a_server_is_killed(learner: Learner, folder: Path) -> None:
    port = free_port()
    expected = learner.predict(["red cat"], task="mood")[0].label

    def patient(number: int) -> str:
        for _ in range(300):
            try:
                response = client.post("/v1/predict", json={"rows": [{"text": "red cat", "task": "mood"}]})
                return str(response.json()["predictions"][0]["label"])
            except httpx.TransportError:
                time.sleep(0.1)
        raise AssertionError("no answer in half a minute")

    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client, ThreadPoolExecutor(4) as pool:
        with process(learner, folder / "home", port) as running:
            futures = [pool.submit(patient, number) for number in range(400)]
            wait_until(lambda: sum(future.done() for future in futures) > 20)
            running.kill()
            unfinished = sum(not future.done() for future in futures)
        with server(learner, port=port):
            assert {future.result() for future in futures} == {expected}
    assert unfinished > 4, "some were asked again"


def test_a_public_server_needs_keys_and_a_free_port(cli: CliRunner) -> None:
    assert "continual keys add" in cli("serve", "--host", "0.0.0.0").err
    assert cli("serve", "--host", "0.0.0.0").code == 2
    with socket.create_server(("127.0.0.1", 0)) as listener:
        result = cli("serve", "--port", str(listener.getsockname()[1]))
    assert result.code == 2
    assert "--port" in result.err
