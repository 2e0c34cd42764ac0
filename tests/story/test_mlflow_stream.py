"""A stream's model served by MLflow: the same answers as `continual predict`."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pandas as pd
import pytest
import yaml
from mlflow import pyfunc, set_tracking_uri
from mlflow.exceptions import MlflowException

from continual import Learner
from continual.errors import InputLineError
from continual.inference.predictor import Predictor
from registry.errors import NotFound
from tasks.errors import InputError
from tests.helpers.cli import CliRunner
from tests.helpers.tiny_tasks import rows_of, write_task
from tests.story.test_cli import stream  # noqa: F401  (a fixture)

Rows = list[dict[str, Any]]

TEXTS = ["cat purr meow", "lovely bright superb", "wave coral", "zzz qqq zzz qqq zzz qqq"]
PAIR = ["wave coral", "tide sail"]
STARTS = 180  # seconds that a server may take


@contextmanager
def serving(model: str, environment: dict[str, str]) -> Iterator[str]:
    """Run `mlflow models serve` while the block runs; its address, which may not respond yet."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    words = ("models", "serve", "-m", model, "--env-manager", "local", "--host", "127.0.0.1", "--port", port)
    server = subprocess.Popen([sys.executable, "-m", "mlflow", *words], env=environment, start_new_session=True)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # it starts others, which would outlive it
        server.wait()


def wait_for(address: str) -> None:
    until = time.monotonic() + STARTS
    while time.monotonic() < until:
        try:
            with urlopen(f"{address}/ping", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{address} does not answer")


def invoke(address: str, body: dict[str, Any]) -> Rows:
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(f"{address}/invocations", json.dumps(body).encode(), headers), timeout=60) as answer:
        rows: Rows = json.load(answer)["predictions"]
        return rows


def frame(columns: list[str], rows: list[Any]) -> dict[str, Any]:
    return {"dataframe_split": {"columns": columns, "data": rows}}


def same(answers: Rows, expected: Rows) -> None:
    """Check that two documents are equal, numbers within 1e-5."""
    assert shape(answers) == shape(expected)
    assert numbers(answers) == pytest.approx(numbers(expected), abs=1e-5)


def shape(document: Any) -> Any:
    """Return a document with every number replaced by the same text."""
    if isinstance(document, dict):
        return {key: shape(value) for key, value in document.items()}
    if isinstance(document, list):
        return [shape(value) for value in document]
    return "a number" if isinstance(document, float) else document


def numbers(document: Any) -> list[float]:
    """Return the numbers of a document in order."""
    if isinstance(document, dict | list):
        return [
            number
            for value in (document.values() if isinstance(document, dict) else document)
            for number in numbers(value)
        ]
    return [document] if isinstance(document, float) else []


def lines(cli: CliRunner, folder: Path, texts: list[Any], *options: str) -> Rows:
    file = folder / "lines.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    result = cli("predict", str(file), *options)
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


def test_a_stream_served_by_mlflow_answers_as_predict_does(
    cli: CliRunner,
    stream: Path,  # noqa: F811
    bert_folder: Path,
    tmp_path: Path,
) -> None:
    assert cli("run", str(stream)).code == 0
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with serving("models:/small@champion", environment) as address:
        routed = lines(cli, tmp_path, TEXTS)
        assert {row["abstained"] for row in routed} == {True, False}
        set_tracking_uri(environment["MLFLOW_TRACKING_URI"])
        model = pyfunc.load_model("models:/small@champion")
        listed, framed = model.predict(TEXTS), model.predict(pd.DataFrame({"text": TEXTS}))
        assert listed.equals(framed)
        same(json.loads(listed.to_json(orient="records")), routed)

        wait_for(address)
        with ThreadPoolExecutor(4) as clients:
            for answers in clients.map(lambda _: invoke(address, {"inputs": TEXTS}), range(8)):
                same(answers, routed)
        same(invoke(address, frame(["text"], [[text] for text in TEXTS])), routed)
        same(invoke(address, {"inputs": [PAIR, PAIR]}), lines(cli, tmp_path, [PAIR, PAIR]))
        mixed = lines(cli, tmp_path, [*TEXTS, PAIR])
        same(invoke(address, frame(["text"], [[text] for text in [*TEXTS, PAIR]])), mixed)
        named = lines(cli, tmp_path, TEXTS, "--task", "mood")
        same(invoke(address, {"inputs": {"text": TEXTS, "task": ["mood"] * len(TEXTS)}}), named)
        tasks = [None, "mood", None, "place"]
        with Learner.open(str(bert_folder), tmp_path / "home") as learner:
            predictions = Predictor(learner.backbone, learner.registry).predict(TEXTS, task=tasks)
        rows = [[text, task] for text, task in zip(TEXTS, tasks, strict=True)]
        same(
            invoke(address, frame(["text", "task"], rows)),
            json.loads(json.dumps([prediction.to_json() for prediction in predictions])),
        )
        for bad in ({"inputs": [1]}, frame(["text", "task"], [["a", "mod"]])):
            with pytest.raises(HTTPError, match="400"):
                invoke(address, bad)


def test_a_model_version_of_a_stream_is_immutable(cli: CliRunner, tmp_path: Path, bert_folder: Path) -> None:
    tasks = [write_task(tmp_path, task) for task in ("mood", "place")]
    about = {"backbone": str(bert_folder), "budget": {"epochs": 0, "max_length": 16}}
    file, again = tmp_path / "two.yaml", tmp_path / "mood.yaml"
    file.write_text(yaml.safe_dump({"name": "two", "tasks": tasks} | about), encoding="utf-8")
    assert cli("run", str(file)).code == 0
    set_tracking_uri(f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}")
    first = pyfunc.load_model("models:/two@champion")
    texts = [text for task in ("mood", "place") for text in rows_of(task, 4, seed=9).texts]
    before = first.predict(texts)
    assert set(before["delta"].dropna()) == {"mood@1", "place@1"}

    entry = write_task(tmp_path / "more", "mood", train=90)
    for old, new in entry["source"]["data_files"].items():
        entry["source"]["data_files"][old] = f"more/{new}"
    again.write_text(yaml.safe_dump(entry | about), encoding="utf-8")
    assert cli("learn", str(again)).code == 0
    if cli("deltas", "promote", "mood@2").code:
        assert "mood@2 serves already" in cli("deltas", "promote", "mood@2").err
    assert cli("mlflow", "sync").code == 0
    assert pyfunc.load_model("models:/two/1").predict(texts).equals(before), "routed by its own signatures"
    newest = pyfunc.load_model("models:/two@champion").predict(pd.DataFrame({"text": TEXTS, "task": "mood"}))
    assert set(newest["delta"]) == {"mood@2"}
    with pytest.raises(NotFound, match="task learned on backbone"):
        first.predict(pd.DataFrame({"text": TEXTS, "task": "mod"}))
    with pytest.raises(InputError, match="'words' and no text"):
        first.predict(pd.DataFrame({"words": TEXTS}))
    with pytest.raises(InputLineError, match="row 2 has the text 3"):
        first.predict(["wave", 3])
    with pytest.raises(InputError, match="row 1: task 3 is no name"):
        first.predict(pd.DataFrame({"text": TEXTS, "task": 3}))
    assert first.predict([]).empty
    assert cli("purge", "mood", "--yes").code == 0
    with pytest.raises(MlflowException, match="not found"):
        pyfunc.load_model("models:/two/1")
    assert set(pyfunc.load_model("models:/two@champion").predict(texts)["delta"]) <= {"place@1", None}
