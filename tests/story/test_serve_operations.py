"""What an operator sees of a server: the page of its operations, its log, and a server that was started too early."""

# ruff: noqa: F811 (fixtures are imported by their names)

import json
import logging
import re
import shlex
import signal
from html import unescape
from pathlib import Path

import httpx
import pytest

from continual import Learner, read_task
from continual.serve import AccessLogMiddleware, ChampionServer, create_app
from continual.settings import resolve_locations
from registry import Registry, add_key
from tests.helpers.fresh_processes import FreshPython
from tests.helpers.live_server import (  # noqa: F401
    Server,
    ask,
    folder,
    forget_keys,
    learner,
    running_app,
    served,
    server,
    wait_until,
)
from tests.helpers.tiny_tasks import rows_of, write_task

SECRET = "ck_0123456789"


def test_the_page_of_operations_lists_them_all_and_loads_nothing(served: Server) -> None:
    response = served.client.get("/docs")
    document = served.client.get("/openapi.json").json()
    headings = re.findall(r"<code>([A-Z]+ /\S*)</code></h3>", response.text)
    operations = [f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods]
    assert sorted(headings) == sorted(operations)
    for schema in document["components"]["schemas"]:
        assert f'<details id="{schema}">' in response.text
    assert "script-src 'none'" in response.headers["content-security-policy"]
    assert not re.findall(r"<script|\b(?:src|on\w+)=|url\(|href=\"(?!data:|#|\./|openapi\.json)", response.text)
    assert served.client.get("/openapi.json").json()["paths"].keys().isdisjoint({"/docs", "/"})


def test_the_examples_on_the_page_of_operations_are_well_formed(served: Server) -> None:
    commands = [
        unescape(code)
        for code in re.findall(r"<pre><code>(curl.*?)</code></pre>", served.client.get("/docs").text, re.S)
    ]
    assert len(commands) > 12
    for words in (shlex.split(command.replace("\\\n", " ")) for command in commands):
        url = words[2].replace("http://localhost:8000", served.url).replace("{name}", "mood")
        method = words[words.index("-X") + 1] if "-X" in words else "GET"
        body = words[words.index("-d") + 1] if "-d" in words else None
        response = httpx.request(method, url, content=body, headers={"content-type": "application/json"}, timeout=60)
        # Names in the examples are not of this server; their bodies and parameters are understood.
        assert response.status_code in (200, 404), (words, response.text)


def test_the_page_of_operations_needs_no_key(learner: Learner) -> None:
    add_key(learner.registry, "reader", role="read")
    try:
        with server(learner) as running:
            assert running.client.get("/docs").status_code == 200
            assert running.client.get("/openapi.json").status_code == 401
    finally:
        forget_keys(learner)


def test_every_request_is_logged_without_its_texts_and_key(learner: Learner, caplog: pytest.LogCaptureFixture) -> None:
    app = AccessLogMiddleware(create_app(ChampionServer(learner.backbone, learner.registry)))
    text = "purr secret meow"
    caplog.set_level(logging.INFO, "continual.serve.core.access_log")
    with running_app(app) as url, httpx.Client(base_url=url, headers={"authorization": f"Bearer {SECRET}"}) as client:
        rows = [{"text": text, "task": "mood"}] * 3
        given = client.post("/v1/predict", json={"rows": rows}, headers={"x-request-id": "trace-7"})
        made = client.get("/v1/deltas", params={"task": text})
        odd = client.get("/v1/nothing", headers={"x-request-id": "a" * 65})
    records = [vars(record) for record in caplog.records if record.name == "continual.serve.core.access_log"]
    answered = [(r["method"], r["path"], r["status"], r["rows"], r["request_id"]) for r in records]
    assert answered == [
        ("POST", "/v1/predict", 200, 3, "trace-7"),
        ("GET", "/v1/deltas", made.status_code, None, made.headers["x-request-id"]),
        ("GET", "/v1/nothing", 404, None, odd.headers["x-request-id"]),
    ]
    assert given.headers["x-request-id"] == "trace-7"
    assert re.fullmatch("[0-9a-f]{32}", odd.headers["x-request-id"])
    assert all(0 < record["milliseconds"] < 60_000 for record in records)
    assert text not in caplog.text
    assert SECRET not in caplog.text


def test_listings_have_the_date_of_the_version_that_serves(learner: Learner, served: Server) -> None:
    tasks = {row["task"]: row for row in served.client.get("/v1/tasks").json()}
    models = {model["id"]: model["created"] for model in served.client.get("/v1/models").json()["data"]}
    for task, row in tasks.items():
        champion = learner.registry.delta(row["champion"])
        assert row["champion_created_at"] == champion.created_at.isoformat()
        assert row["champion_created_at"] > row["created_at"] or champion.version == 1
        assert models[task] == int(champion.created_at.timestamp())


def test_a_server_that_is_started_before_anything_is_learned_picks_it_up(bert_folder: Path, tmp_path: Path) -> None:
    """In a process of its own, as its log is."""
    home = tmp_path / "home"
    words = ["serve", "--home", str(home), "--port", "0", "--poll", "0.1", "--dtype", "float32", "--log-format", "json"]
    (tmp_path / "mood.yaml").write_text(json.dumps(write_task(tmp_path, "mood") | {"budget": {"epochs": 0}}))
    home.mkdir()
    process = FreshPython("-c", "from continual.cli import main; main()", *words)
    try:
        wait_until(lambda: "nothing is learned" in process.stderr, seconds=60)
        places = resolve_locations(home, {})
        registry = Registry.open(places.registry, places.blobs)
        with Learner.open(str(bert_folder), registry, device="cpu", dtype="float32") as learner:
            learner.learn(read_task(tmp_path / "mood.yaml"))
        wait_until(lambda: "serving on" in process.stderr, seconds=60)
        records = [json.loads(line) for line in process.stderr.splitlines()]
        assert f"continual learn TASK.yaml --home {home}" in records[0]["message"]
        url = records[-1]["message"].partition("serving on ")[2]
        (text,) = rows_of("mood", 1).texts
        answer = httpx.post(f"{url}/v1/predict", json={"rows": [{"text": text}]}, timeout=60)
        assert answer.json()["predictions"][0]["task"] == "mood"
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    record = json.loads(process.stderr.splitlines()[-1])
    assert record.keys() == {
        *("time", "level", "logger", "message"),
        *("request_id", "method", "path", "status", "milliseconds", "rows"),
    }
    assert (record["path"], record["status"], record["rows"]) == ("/v1/predict", 200, 1)
