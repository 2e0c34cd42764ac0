"""Replicated serving on a two-node cluster: one process's answers, through the loss of a replica."""

# ruff: noqa: F811 (fixtures are imported by their names)

import os
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from continual import Learner
from continual.serve import Limits, ServerConfig
from registry import add_key, archive_delta, promote_delta
from tasks.errors import InputError
from tests.helpers.cli import CliRunner
from tests.helpers.live_server import (  # noqa: F401
    POLL,
    Server,
    ask,
    error_body,
    folder,
    forget_keys,
    learner,
    running_app,
    served,
    wait_until,
)
from tests.helpers.paths import ROOT
from tests.helpers.tiny_tasks import rows_of
from tests.story.test_serve import close

ray = pytest.importorskip("ray", reason="Ray is not installed (extra `ray`)")

from ray.cluster_utils import Cluster  # noqa: E402
from ray.util import list_named_actors  # noqa: E402

from continual.serve.replicated import ReplicaConfig, deploy_replicas  # noqa: E402
from continual.serve.replicated.deployment import check_capacity  # noqa: E402

TASKS = ("animals", "mood", "echo")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of two nodes with one core each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        patch.setenv("OMP_NUM_THREADS", "1")
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=1)
        yield nodes.address
        nodes.shutdown()


@pytest.fixture(scope="module")
def recipe(learner: Learner, folder: Path) -> ServerConfig:
    home = folder / "home"
    return ServerConfig(
        backbone=str(folder / "backbone"),
        device="cpu",
        dtype="float32",
        registry=f"sqlite:///{home / 'registry.db'}",
        blobs=str(home / "blobs"),
        limits=Limits(rows=64, tokens=20_000, bytes=200_000),
        poll=POLL,
    )


@pytest.fixture(scope="module")
def two(cluster: str, recipe: ServerConfig, learner: Learner) -> Iterator[Server]:
    """A gateway with two replicas, one on each node."""
    with (
        deploy_replicas(recipe, ReplicaConfig(count=2, cpus=1, gpus=0, address=cluster, name="two")) as app,
        running_app(app) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield Server(url, client, None)  # type: ignore[arg-type]  # who serves is in other processes


def rows_by_replica(two: Server) -> dict[str, Counter[str]]:
    """Return the number of rows of each task that each replica has answered."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for family in text_string_to_metric_families(two.client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == "continual_rows_total":
                counts[sample.labels["replica"]][sample.labels["task"]] += int(sample.value)
    return counts


def test_answers_equal_those_of_one_process(two: Server, served: Server) -> None:
    texts = [str(text) for task in ("animals", "mood") for text in rows_of(task, 4).texts]
    rows = [{"text": text} | ({"task": TASKS[i % 2]} if i % 3 else {}) for i, text in enumerate(texts)]
    answers, expected = (ask(endpoint, *rows).json()["predictions"] for endpoint in (two, served))
    for answer, expected_answer in zip(answers, expected, strict=True):
        close(answer, {key: value for key, value in expected_answer.items() if key != "possible"})
    for path in ("/v1/tasks", "/v1/models", "/readyz", "/healthz", "/openapi.json", "/"):
        assert two.client.get(path).content == served.client.get(path).content, path


def test_openai_s_client_gets_whole_and_streamed_answers(two: Server, served: Server, learner: Learner) -> None:
    outputs: list[Any] = []
    for endpoint in (two, served):
        with OpenAI(base_url=f"{endpoint.url}/v1", api_key="none") as client:
            whole = client.completions.create(model="echo", prompt="red cat").choices[0].text
            chat = client.chat.completions.create(
                model="echo", messages=[{"role": "user", "content": "red cat"}], stream=True
            )
            parts = [chunk.choices[0].delta.content or "" for chunk in chat]
            vector = client.embeddings.create(model=learner.backbone.name, input="red cat").data[0].embedding
        assert "".join(parts) == whole
        outputs.append((whole, pytest.approx(vector, abs=1e-5)))
    assert outputs[0][0] == outputs[1][0]
    assert outputs[0][1].expected == outputs[1][1]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"rows": [{"text": "x", "task": "moood"}]}, 404, "mood"),
        ({"rows": []}, 422, "rows"),
        ({"rows": "a"}, 422, "rows"),
        ({"rows": [{"text": "a"}] * 65}, 413, "65 inputs"),
        ({"rows": [{"text": "a" * 90_000}]}, 413, "tokens"),
        ({"rows": [{"text": "a" * 300_000}]}, 413, "200000 bytes"),
    ],
)
def test_errors_equal_those_of_one_process(two: Server, body: Any, status: int, says: str) -> None:
    assert says in error_body(two.client.post("/v1/predict", json=body), status)


def test_invalid_hosts_paths_and_timeouts_are_refused_alike(two: Server) -> None:
    error_body(two.client.get("/v1/nothing"), 404)
    error_body(two.client.delete("/v1/predict"), 405)
    assert "evil.com" in error_body(two.client.get("/v1/tasks", headers={"host": "evil.com"}), 400)
    row = {"rows": [{"text": "a"}]}
    for timeout in ("soon", "61"):
        assert "x-request-timeout" in error_body(
            two.client.post("/v1/predict", json=row, headers={"x-request-timeout": timeout}), 422
        )


def test_tasks_have_replica_affinity(two: Server) -> None:
    before = rows_by_replica(two)
    for _ in range(10):
        for task in TASKS:
            ask(two, {"text": "a", "task": task}, {"text": "b", "task": task})
        assert two.client.post("/v1/completions", json={"model": "echo", "prompt": "a"}).status_code == 200
    after = rows_by_replica(two)
    gained = {task: [after[name][task] - before[name][task] for name in after] for task in TASKS}
    assert {task: sorted(rows) for task, rows in gained.items()} == {
        "animals": [0, 20],
        "mood": [0, 20],
        "echo": [0, 30],
    }
    assert len({tuple(rows) for rows in gained.values()}) > 1, "not all to one"


def test_every_replica_serves_a_new_champion(two: Server, learner: Learner) -> None:
    def statuses() -> set[int]:
        return {ask(two, {"text": "a"}, {"text": "a", "task": "mood"}).status_code for _ in range(8)}

    archive_delta(learner.registry, "mood@1")
    try:
        wait_until(lambda: statuses() == {409})
    finally:
        promote_delta(learner.registry, "mood@1")
    wait_until(lambda: statuses() == {200})


def refused(two: Server, path: str) -> bool:
    return two.client.get(path).status_code == 401


def test_every_replica_requires_keys(two: Server, learner: Learner) -> None:
    read, admin = (add_key(learner.registry, f"two {role}", role=role) for role in ("read", "admin"))
    heads = {"read": {"authorization": f"Bearer {read}"}, "admin": {"authorization": f"Bearer {admin}"}}
    try:
        for path in ("/v1/tasks", "/metrics", "/v1/load"):
            wait_until(partial(refused, two, path))
            assert two.client.get(path, headers=heads["read"]).status_code == 200
        error_body(two.client.post("/v1/refresh", headers=heads["read"]), 403)
        archive_delta(learner.registry, "mood@1")
        assert two.client.post("/v1/refresh", headers=heads["admin"]).status_code == 200
        body = {"rows": [{"text": "a", "task": "mood"}]}
        statuses = {two.client.post("/v1/predict", json=body, headers=heads["read"]).status_code for _ in range(8)}
        assert statuses == {409}, "all have looked"
    finally:
        promote_delta(learner.registry, "mood@1")
        forget_keys(learner)
    wait_until(lambda: {two.client.get("/v1/tasks").status_code for _ in range(8)} == {200})


def test_the_load_is_that_of_all_replicas(two: Server) -> None:
    wait_until(lambda: two.client.get("/v1/load").json()["tasks"] == 3)
    load = two.client.get("/v1/load").json()
    assert len(load["inputs_by_second"]) == 60
    assert load["waiting"] == 0


def test_requests_of_a_disconnected_client_are_dropped(two: Server) -> None:
    body = {"rows": [{"text": " ".join(["cat"] * 200), "task": "mood"}] * 64}
    for _ in range(20):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{two.url}/v1/predict", json=body, timeout=0.001)
    wait_until(lambda: two.client.get("/v1/load").json()["waiting"] == 0)


def test_retrying_clients_lose_nothing_when_a_replica_is_killed(two: Server, learner: Learner) -> None:
    expected, done = learner.predict(["red cat"], task="mood")[0].label, threading.Event()
    victim = next(name for name, rows in rows_by_replica(two).items() if rows["mood"])

    def patient() -> set[str]:
        labels = set()
        while not done.is_set():
            response = two.client.post("/v1/predict", json={"rows": [{"text": "red cat", "task": "mood"}]})
            if response.status_code == 200:
                labels.add(response.json()["predictions"][0]["label"])
            else:
                assert "another one answers" in error_body(response, 503)
        return labels

    def by_others() -> float:
        return sum(rows["mood"] for name, rows in rows_by_replica(two).items() if name != victim)

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(patient) for _ in range(8)]
        try:
            before = rows_by_replica(two)[victim]["mood"]
            wait_until(lambda: rows_by_replica(two)[victim]["mood"] > before + 20)
            by_other_replicas = by_others()
            kill(victim)
            wait_until(lambda: by_others() > by_other_replicas + 20, seconds=60)
        finally:
            done.set()
            assert not [client.exception() for client in clients if client.exception()]
        assert [client.result() for client in clients] == [{expected}] * 8


def kill(replica: str) -> None:
    (name,) = [actor["name"] for actor in list_named_actors(all_namespaces=True) if replica in actor["name"]]
    ray.kill(ray.get_actor(name, namespace="serve"))


def test_a_registry_that_replicas_cannot_reach_is_refused(
    cluster: str, recipe: ServerConfig, cli: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = ReplicaConfig(count=2, cpus=1, gpus=0, address=cluster, name="none")
    alone = replace(recipe, registry="sqlite://", blobs="memory://blobs")
    with pytest.raises(InputError, match="in the memory of this process"), deploy_replicas(alone, two):
        pass
    names = list[str]()

    def named(recipe: ServerConfig, replicas: ReplicaConfig) -> None:
        names.append(replicas.name)
        raise InputError("none begins here")

    monkeypatch.setattr("continual.serve.replicated.deploy_replicas", named)
    for host in ("one", "other"):
        monkeypatch.setattr("continual.cli.serve.gethostname", lambda host=host: host)
        cli("serve", "--replicas", "2", "--port", "0", "--backbone", recipe.backbone)
    assert [name.split()[1] for name in names] == ["one", "other"], "servers of one port on two machines are two"
    assert "would be of replicas" in cli("serve", "--replica-cpus", "2", "--port", "0").err
    monkeypatch.setitem(sys.modules, "continual.serve.replicated", None)
    result = cli("serve", "--replicas", "2", "--port", "0", "--backbone", recipe.backbone)
    assert result.code == 2
    assert "continual-deltas[serve,ray]" in result.err


def test_more_cores_than_the_cluster_has_are_refused(two: Server, cluster: str, recipe: ServerConfig) -> None:
    with pytest.raises(InputError, match=r"room for 0 replicas with 3 CPUs.*3 are needed"):
        check_capacity(ReplicaConfig(count=3, cpus=3, gpus=0, address=cluster, name="none"))
