"""Every learned task over HTTP: answers as `predict` gives them, errors in one shape, keys, new champions."""

import itertools
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from command_line import Run
from openai import NotFoundError, OpenAI, UnprocessableEntityError
from served import POLL, Server, folder, learner, server  # noqa: F401 (fixtures)
from tiny import rows_of
from transformers import PreTrainedTokenizerBase

from continual import Learner
from continual.features import features, tokenize
from continual.predict import Predictor
from continual.serve import Limits, Serving
from continual.serve.serving import Ask
from registry import add_key, archive_delta, promote_delta, revoke_key

TASKS = ["animals", "mood"]


@pytest.fixture(scope="module")
def served(learner: Learner) -> Iterator[Server]:  # noqa: F811
    with server(learner) as running:
        yield running


@pytest.fixture
def texts() -> list[str]:
    return [str(text) for number in range(4) for task in TASKS for text in rows_of(task, 1, seed=number).texts]


def ask(served: Server, *rows: dict[str, Any], **more: Any) -> httpx.Response:
    return served.client.post("/v1/predict", json={"rows": rows, **more})


def fault(response: httpx.Response, status: int) -> str:
    """What an answer says went wrong, in the one shape that there is."""
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error"}
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "Traceback" not in error["message"]
    return str(error["message"])


def close(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key, value in wanted.items():
        if isinstance(value, float):
            assert found[key] == pytest.approx(value, abs=1e-3), key
        elif key != "possible":
            assert found[key] == value, key


def test_answers_are_those_of_predict(served: Server, learner: Learner, texts: list[str]) -> None:  # noqa: F811
    predictor = Predictor(learner.backbone, learner.registry)
    tasks = [None if i % 3 == 0 else TASKS[i % 2] for i in range(len(texts))]
    rows = [{"text": text} | ({"task": task} if task else {}) for text, task in zip(texts, tasks, strict=True)]
    found = ask(served, *rows).json()["predictions"]
    for own, wanted in zip(found, predictor.predict(texts, task=tasks), strict=True):
        close(own, vars(wanted))


def test_all_likely_tasks_are_named_where_that_is_asked_for(served: Server, texts: list[str]) -> None:
    found = ask(served, *({"text": text} for text in texts), at_least=0.0).json()["predictions"]
    known = {"animals", "mood", "echo"}
    assert any({own["task"] for own in one["possible"]} == known for one in found)


def test_a_pair_is_a_text_too(served: Server) -> None:
    (found,) = ask(served, {"text": ["red cat", "blue dog"], "task": "mood"}).json()["predictions"]
    assert found["text"] == ["red cat", "blue dog"]
    assert found["task"] == "mood"


def test_many_clients_at_once_get_their_own_answers(served: Server, texts: list[str]) -> None:
    rows = [{"text": text, "task": TASKS[i % 2]} for i, text in enumerate(texts)]
    alone = [ask(served, row).json()["predictions"][0]["label"] for row in rows]
    with ThreadPoolExecutor(16) as pool:
        found = [*pool.map(lambda i: ask(served, rows[i % len(rows)]), range(160))]
    assert [one.json()["predictions"][0]["label"] for one in found] == alone * (160 // len(rows))


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"rows": [{"text": "x", "task": "moood"}]}, 404, "mood"),
        ({"rows": []}, 422, "rows"),
        ({"rows": [{"text": 1}]}, 422, "text"),
        ({"rows": [{"text": ["a"]}]}, 422, "text"),
        ({"rows": [{"txt": "a"}]}, 422, "text"),
        ({"rows": [{"text": "a"}], "at_least": 2}, 422, "at_least"),
        ({"rows": [{"text": "a"}] * 65}, 413, "65 inputs"),
        ({"rows": [{"text": "a" * 9000}]}, 413, "tokens"),
        ({"rows": [{"text": "a" * 30_000}]}, 413, "20000 bytes"),
    ],
)
def test_what_cannot_be_answered_is_said(learner: Learner, body: Any, status: int, says: str) -> None:  # noqa: F811
    with server(learner, limits=Limits(rows=64, tokens=2000, bytes=20_000)) as small:
        assert says in fault(small.client.post("/v1/predict", json=body), status)
        body = (part for part in [json.dumps(body).encode()])  # in chunks, so that nobody knows its size beforehand
        assert says in fault(
            small.client.post("/v1/predict", content=body, headers={"content-type": "application/json"}), status
        )


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"rows": [{"text": "\\ud800"}]}'])
def test_bodies_that_are_none_are_refused(served: Server, body: bytes) -> None:
    sent = served.client.post("/v1/predict", content=body, headers={"content-type": "application/json"})
    fault(sent, 422)


def test_other_paths_and_ways_are_refused_in_the_same_shape(served: Server) -> None:
    fault(served.client.get("/v1/nothing"), 404)
    fault(served.client.delete("/v1/predict"), 405)
    assert "evil.com" in fault(served.client.get("/v1/tasks", headers={"host": "evil.com"}), 400)
    assert "x-request-timeout" in fault(
        served.client.post("/v1/predict", json={"rows": [{"text": "a"}]}, headers={"x-request-timeout": "soon"}), 422
    )


def test_a_task_that_is_learned_nowhere_here_is_a_conflict(learner: Learner) -> None:  # noqa: F811
    with server(learner) as own:
        archive_delta(learner.registry, "mood@1")
        try:
            assert own.client.post("/v1/refresh").status_code == 200
            assert "no delta on backbone" in fault(ask(own, {"text": "a", "task": "mood"}), 409)
            assert ask(own, {"text": "a", "task": "animals"}).status_code == 200
        finally:
            promote_delta(learner.registry, "mood@1")


def test_a_new_champion_answers_without_a_restart(learner: Learner) -> None:  # noqa: F811
    with server(learner) as own:
        archive_delta(learner.registry, "mood@1")
        until(lambda: ask(own, {"text": "a", "task": "mood"}).status_code == 409)
        promote_delta(learner.registry, "mood@1")
        until(lambda: ask(own, {"text": "a", "task": "mood"}).status_code == 200)


def test_the_registry_is_looked_at_again_whatever_went_wrong(
    learner: Learner,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secret = add_key(learner.registry, "soon gone", role="read")
    head, failed = {"authorization": f"Bearer {secret}"}, threading.Event()

    def fails() -> bool:
        failed.set()
        raise RuntimeError("nobody thought of this")

    try:
        with server(learner) as own:
            assert own.client.get("/v1/tasks", headers=head).status_code == 200
            monkeypatch.setattr(own.serving, "refresh", fails)
            assert failed.wait(20)
            add_key(learner.registry, "stays", role="read")
            revoke_key(learner.registry, "soon gone")
            until(lambda: own.client.get("/v1/tasks", headers=head).status_code == 401)
    finally:
        revoke_all(learner)


def test_one_text_that_cannot_be_answered_costs_the_others_little(
    learner: Learner,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []

    asks = [Ask("red cat" if i != 40 else "bad", embed=True) for i in range(64)]
    whole = Serving._embedded

    def embedded(self: Serving, texts: Any) -> Any:
        sizes.append(len(texts))
        if "bad" in texts:
            raise RuntimeError("bad")
        return whole(self, texts)

    monkeypatch.setattr(Serving, "_embedded", embedded)
    found = Serving(learner.backbone, learner.registry).answers(asks)
    assert [i for i, answer in enumerate(found) if isinstance(answer, Exception)] == [40]
    assert len(sizes) == 1 + 2 * 6


def until(true: Any, *, seconds: float = 20) -> None:
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds
        time.sleep(POLL)


@contextmanager
def away(learner: Learner, task: str) -> Iterator[None]:  # noqa: F811
    """Without the values of a task's delta."""
    champions = {own.task: own for own in learner.registry.champions(learner.backbone.fingerprint)}
    blob = Path(learner.registry.blobs.path(champions[task].digest))
    moved = blob.rename(blob.with_suffix(".away"))
    try:
        yield
    finally:
        moved.rename(blob)


def test_a_delta_that_cannot_be_read_fails_its_own_rows(learner: Learner) -> None:  # noqa: F811
    with away(learner, "mood"), server(learner) as own:
        bad, good = ask(own, {"text": "a", "task": "mood"}, {"text": "a", "task": "animals"}).json()["predictions"]
    assert "BlobError" in bad["error"]
    assert (bad["label"], good["error"]) == (None, None)
    assert good["label"]


def test_a_stream_that_cannot_begin_has_a_status_to_say_so(learner: Learner) -> None:  # noqa: F811
    with away(learner, "echo"), server(learner) as own:
        sent = own.client.post("/v1/completions", json={"model": "echo", "prompt": "red cat", "stream": True})
        assert "BlobError" in fault(sent, 503)


def test_what_was_learned_can_be_read(served: Server, learner: Learner) -> None:  # noqa: F811
    get = served.client.get
    assert get("/v1/tasks").json() == learner.registry.tasks()
    assert get("/v1/deltas", params={"task": "mood"}).json() == learner.registry.deltas("mood")
    assert get("/v1/lineage", params={"delta": "mood@1"}).json() == learner.registry.lineage("mood@1")
    assert get("/v1/report", params={"stream": "served"}).json()["oracle"] == learner.report("served")["oracle"]
    assert [row["stream"] for row in get("/v1/streams").json()] == ["served"]
    assert {row["task"] for row in get("/v1/similar", params={"task": "mood"}).json()} <= {"animals", "echo"}
    assert "served" in fault(get("/v1/report", params={"stream": "servd"}), 404)
    assert get("/healthz").json() == {"status": "ok"}
    assert get("/readyz").json() == {"status": "ok", "tasks": 3}


def test_metrics_count_rows_by_task(learner: Learner) -> None:  # noqa: F811
    with server(learner) as own:
        ask(own, {"text": "a", "task": "mood"}, {"text": "b", "task": "mood"})
        ask(own, {"text": "a", "task": "moood"})
        said = own.client.get("/metrics").text
    assert 'continual_rows_total{outcome="answered",task="mood"} 2.0' in said
    assert 'continual_requests_total{path="/v1/predict",status="404"} 1.0' in said
    assert 'continual_resident{place="memory",task="mood"} 1.0' in said
    assert 'continual_resident{place="memory",task="animals"} 0.0' in said


def revoke_all(learner: Learner) -> None:  # noqa: F811
    for name, _ in learner.registry.active_keys().values():
        revoke_key(learner.registry, name)


def test_keys_are_asked_for_as_soon_as_there_is_one(learner: Learner) -> None:  # noqa: F811
    read, admin = (add_key(learner.registry, role, role=role) for role in ("read", "admin"))
    row = {"rows": [{"text": "a", "task": "mood"}]}
    try:
        with server(learner) as own:
            for secret, status in ((read, 200), (admin, 200), ("ck_wrong", 401)):
                sent = own.client.post("/v1/predict", json=row, headers={"authorization": f"Bearer {secret}"})
                assert sent.status_code == status
            assert "key" in fault(own.client.get("/v1/tasks"), 401)
            assert own.client.get("/healthz").status_code == 200
            assert "may only read" in fault(
                own.client.post("/v1/refresh", headers={"authorization": f"Bearer {read}"}), 403
            )
            assert own.client.post("/v1/refresh", headers={"authorization": f"Bearer {admin}"}).status_code == 200
            revoke_key(learner.registry, "read")
            head = {"authorization": f"Bearer {read}"}
            until(lambda: own.client.post("/v1/predict", json=row, headers=head).status_code == 401)
    finally:
        revoke_all(learner)


def test_a_server_for_others_answers_nobody_without_a_key(learner: Learner) -> None:  # noqa: F811
    with server(learner, local=False) as own:
        fault(ask(own, {"text": "a"}), 401)


def test_openai_s_client_is_answered(served: Server, learner: Learner) -> None:  # noqa: F811
    (wanted,) = learner.predict(["red cat"], task="echo")
    with OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        assert {"echo", "mood"} <= {model.id for model in client.models.list()}
        completion = client.completions.create(model="echo", prompt="red cat", temperature=0)
        message = {"role": "user", "content": "red cat"}
        chat = client.chat.completions.create(model="echo", messages=[message])  # type: ignore[list-item]
        assert completion.choices[0].text == chat.choices[0].message.content == wanted.label
        assert completion.usage
        assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
        embedded = client.embeddings.create(model=learner.backbone.name, input=["red cat", "blue dog"])
        with pytest.raises(UnprocessableEntityError, match="kind classification"):
            client.completions.create(model="mood", prompt="red cat")
        with pytest.raises(UnprocessableEntityError, match="temperature"):
            client.completions.create(model="echo", prompt="red cat", temperature=1)
    tokens = tokenize(learner.backbone, ["red cat", "blue dog"], max_length=32)
    vectors = features(learner.backbone, tokens)
    assert torch.allclose(torch.tensor([one.embedding for one in embedded.data]), vectors, atol=1e-5)


def test_answers_are_heard_while_they_are_written(served: Server, learner: Learner) -> None:  # noqa: F811
    heard: list[str] = []
    predictor = Predictor(learner.backbone, learner.registry)
    (wanted,) = predictor.predict(["red cat"], task=["echo"], hear=[heard.append])
    assert len(heard) > 2
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(heard))
    assert heard[-1] == wanted.label
    message = {"role": "user", "content": "red cat"}
    with OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        texts = client.completions.create(model="echo", prompt="red cat", stream=True)
        parts = [chunk.choices[0] for chunk in texts]
        chat = client.chat.completions.create(model="echo", messages=[message], stream=True)  # type: ignore[list-item]
        said = [chunk.choices[0].delta.content or "" for chunk in chat]
        assert "".join(part.text for part in parts) == "".join(said) == wanted.label
        assert [part.finish_reason for part in parts] == [None] * (len(parts) - 1) + ["stop"]
        with pytest.raises(NotFoundError, match="echo"):
            client.completions.create(model="eccho", prompt="red cat", stream=True)
        with pytest.raises(UnprocessableEntityError, match="2 prompts"):
            client.completions.create(model="echo", prompt=["red cat", "red cat"], stream=True)
        short = client.completions.create(model="echo", prompt="red cat", max_tokens=1)
        assert short.choices[0].finish_reason == "length"
        assert wanted.label.startswith(short.choices[0].text)


def test_threads_do_not_share_a_tokenizer(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    used: dict[object, set[int]] = {}
    call = PreTrainedTokenizerBase.__call__

    def seen(self: Any, *args: Any, **kwargs: Any) -> Any:
        used.setdefault(self, set()).add(threading.get_ident())  # it is set to cut texts, and to cut none, by each call
        return call(self, *args, **kwargs)

    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", seen)
    for stream in (False, True):
        said = {"model": "echo", "prompt": "red cat", "max_tokens": 1, "stream": stream}
        assert served.client.post("/v1/completions", json=said).status_code == 200
    assert len(used) == 2
    assert all(len(threads) == 1 for threads in used.values())


def test_a_client_that_leaves_is_forgotten(learner: Learner, texts: list[str]) -> None:  # noqa: F811
    with server(learner) as own:
        address = own.client.base_url
        for _ in range(20):
            with socket.create_connection((address.host, address.port)) as gone:
                body = json.dumps({"rows": [{"text": text, "task": "mood"} for text in texts * 8]}).encode()
                gone.sendall(b"POST /v1/predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n")
                gone.sendall(b"content-length: %d\r\n\r\n%s" % (len(body), body))
        assert ask(own, {"text": "a", "task": "mood"}).status_code == 200
        until(lambda: "continual_waiting_rows 0.0" in own.client.get("/metrics").text)


def test_nothing_learned_yet_is_no_error(bert_folder: Path, tmp_path: Path) -> None:
    with (
        Learner.open(str(bert_folder), tmp_path / "home", device="cpu", dtype="float32") as empty,
        server(empty) as own,
    ):
        assert "nothing is learned" in fault(own.client.get("/readyz"), 503)
        assert "nothing is learned" in fault(ask(own, {"text": "a"}), 409)
        assert own.client.get("/v1/tasks").json() == []


@contextmanager
def process(learner: Learner, home: Path, port: int) -> Iterator[subprocess.Popen[str]]:  # noqa: F811
    """`continual serve` over the same home, in a process of its own that listens."""
    words = ["serve", "--home", str(home), "--backbone", learner.backbone.name, "--port", str(port), "--poll", "0.1"]
    running = subprocess.Popen(
        [sys.executable, "-c", "from continual.cli import main; main()", *words, "--dtype", "float32"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: running.poll() is not None or ready(port), seconds=120)
        assert running.poll() is None, running.communicate()[1]
        yield running
    finally:
        running.kill()
        running.communicate()


def ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def test_a_server_that_is_told_to_end_finishes_what_it_accepted(learner: Learner, folder: Path) -> None:  # noqa: F811
    port = free_port()
    rows = [{"text": " ".join(["cat"] * 20), "task": "mood"}] * 1000
    with process(learner, folder / "home", port) as running, ThreadPoolExecutor(8) as pool:
        url = f"http://127.0.0.1:{port}/v1/predict"
        sent = [pool.submit(httpx.post, url, json={"rows": rows}, timeout=60) for _ in range(8)]
        until(lambda: "continual_waiting_rows 0.0" not in httpx.get(f"http://127.0.0.1:{port}/metrics").text)
        running.send_signal(signal.SIGTERM)
        assert [len(one.result().json()["predictions"]) for one in sent] == [1000] * 8
        assert running.wait(30) == 0
    assert not ready(port)


def test_clients_that_ask_again_lose_nothing_when_a_server_is_killed(learner: Learner, folder: Path) -> None:  # noqa: F811
    port = free_port()
    wanted = learner.predict(["red cat"], task="mood")[0].label

    def patient(number: int) -> str:
        for _ in range(300):
            try:
                sent = client.post("/v1/predict", json={"rows": [{"text": "red cat", "task": "mood"}]})
                return str(sent.json()["predictions"][0]["label"])
            except httpx.TransportError:
                time.sleep(0.1)
        raise AssertionError("no answer in half a minute")

    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client, ThreadPoolExecutor(4) as pool:
        with process(learner, folder / "home", port) as running:
            found = [pool.submit(patient, number) for number in range(400)]
            until(lambda: sum(one.done() for one in found) > 20)
            running.kill()
            left = sum(not one.done() for one in found)
        with server(learner, port=port):
            assert {one.result() for one in found} == {wanted}
    assert left > 4, "some were asked again"


def test_others_need_keys_and_a_port_must_be_free(cli: Run) -> None:
    assert "continual keys add" in cli("serve", "--host", "0.0.0.0").err
    assert cli("serve", "--host", "0.0.0.0").code == 2
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = cli("serve", "--port", str(taken.getsockname()[1]))
    assert found.code == 2
    assert "--port" in found.err
