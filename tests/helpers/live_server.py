"""A server over a home of tiny tasks, as fixtures: real HTTP on a free port."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from sqlalchemy import delete
from starlette.types import ASGIApp

from continual import Learner, read_stream
from continual.serve import ChampionServer, ConnectionLimits, Limits, bind_socket, create_app, create_server
from continual.settings import resolve_locations
from registry import Registry
from registry.schema.tables import ApiKey
from tests.helpers.tiny_tasks import rows_of, save_backbone, tiny_backbone, write_rows, write_task

METHODS = {"animals": "lora", "mood": "adapter"}
BUDGET = {"epochs": 1, "batch_size": 16, "learning_rate": 0.01, "max_length": 32}
POLL = 0.05


def echo_task(folder: Path) -> dict[str, object]:
    """Write the rows of a task that repeats the first three words of a text; its entry of a stream file."""
    files = {}
    for seed, (split, n) in enumerate({"train": 24, "validation": 8, "test": 4}.items()):
        texts = rows_of("food", n, seed=seed).texts
        write_rows(folder / f"echo-{split}.jsonl", texts, [" ".join(str(text).split()[:3]) for text in texts])
        files[split] = f"echo-{split}.jsonl"
    source = {"path": "json", "data_files": files}
    return {"name": "echo", "kind": "generation", "text": "text", "target": "label", "source": source}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def learner(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Learner]:
    """A learner with two classification tasks and one generation task on a tiny causal backbone."""
    backbone = save_backbone(tiny_backbone("gpt2"), folder / "backbone")
    entries = [write_task(folder, task) | {"method": method} for task, method in METHODS.items()]
    stream = {"name": "served", "budget": BUDGET, "tasks": [*entries, echo_task(folder)]}
    (folder / "stream.yaml").write_text(yaml.safe_dump(stream))
    places = resolve_locations(folder / "home", {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        opened = Registry.open(places.registry, places.blobs)
        with Learner.open(str(backbone), opened, device="cpu", dtype="float32") as learner:
            assert learner.run(read_stream(folder / "stream.yaml")) == {}
            yield learner


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: Its address.
        client: An HTTP client of it.
        serving: The server's predictor and request queue.
    """

    url: str
    client: httpx.Client
    serving: ChampionServer


@contextmanager
def running_app(app: ASGIApp, *, port: int = 0, connections: ConnectionLimits | None = None) -> Iterator[str]:
    """Run an application in a thread until the block ends; its URL."""
    with bind_socket("127.0.0.1", port) as listener:
        web_server = create_server(app, limits=connections)
        thread = threading.Thread(target=web_server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            web_server.should_exit = True
            thread.join()


@contextmanager
def server(learner: Learner, *, local: bool = True, limits: Limits | None = None, port: int = 0) -> Iterator[Server]:
    """Serve from this process until the block ends."""
    serving = ChampionServer(learner.backbone, learner.registry)
    app = create_app(serving, local=local, limits=limits, poll=POLL)
    with running_app(app, port=port) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield Server(url, client, serving)


@pytest.fixture(scope="module")
def served(learner: Learner) -> Iterator[Server]:
    with server(learner) as running:
        yield running


def ask(served: Server, *rows: dict[str, Any], **options: Any) -> httpx.Response:
    return served.client.post("/v1/predict", json={"rows": rows, **options})


def error_body(response: httpx.Response, status: int) -> str:
    """Check that a response is an error in the common format; its message."""
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error"}
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "Traceback" not in error["message"]
    return str(error["message"])


def wait_until(true: Any, *, seconds: float = 20) -> None:
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < seconds
        time.sleep(POLL)


@contextmanager
def missing_blob(learner: Learner, task: str) -> Iterator[None]:
    """Remove the values of a task's champion from the blob store while the block runs."""
    champions = {champion.task: champion for champion in learner.registry.champions(learner.backbone.fingerprint)}
    blob = Path(learner.registry.blobs.path(champions[task].digest))
    moved = blob.rename(blob.with_suffix(".away"))
    try:
        yield
    finally:
        moved.rename(blob)


def forget_keys(learner: Learner) -> None:
    """Delete all keys, as no command does: a registry that never had one leaves local servers open."""
    with learner.registry.unit_of_work() as unit:
        unit.session.execute(delete(ApiKey))
