"""Tracking in MLflow: nested runs, served models, outages, and no secrets."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient, pyfunc, set_tracking_uri
from mlflow.exceptions import MlflowException

from registry import Registry, purge_task
from registry.errors import NotFound
from tasks.errors import InputError
from tests.helpers.cli import CliRunner
from tests.helpers.paths import PROCESSES
from tests.helpers.postgres_server import Server
from tests.helpers.tiny_tasks import write_task
from tests.story.test_cli import stream  # noqa: F401  (a fixture)

EXPERIMENT = "continual"


def client(home: Path) -> tuple[MlflowClient, str]:
    mlflow_client = MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    return mlflow_client, mlflow_client.get_experiment_by_name(EXPERIMENT).experiment_id


def test_one_run_per_stream_and_one_nested_per_task(cli: CliRunner, stream: Path, tmp_path: Path) -> None:  # noqa: F811
    assert cli("run", str(stream)).code == 0
    mlflow, experiment = client(tmp_path / "home")
    runs = {run.info.run_name: run for run in mlflow.search_runs([experiment])}
    assert set(runs) == {"small", "animals@1", "mood@1", "place@1"}
    parent = runs["small"].info.run_id
    assert {path.path for path in mlflow.list_artifacts(parent)} == {
        "confusion.png",
        "matrix_oracle.png",
        "matrix_routed.png",
        "model",
        "report.html",
        "report.json",
    }
    assert runs["small"].data.metrics["oracle_forgetting"] == 0.0
    assert {"routed_acc", "routed_routing_accuracy", "routed_abstained"} <= set(runs["small"].data.metrics)
    task = runs["mood@1"]
    assert task.data.tags["mlflow.parentRunId"] == parent
    assert task.data.params["settings.rank"] == "2"
    assert len(mlflow.get_metric_history(task.info.run_id, "curve_validation_accuracy")) == 2
    assert "per_class.json" in {path.path for path in mlflow.list_artifacts(task.info.run_id)}
    assert [path.path for path in mlflow.list_artifacts(task.info.run_id, "delta")] == ["delta/mood@1.safetensors"]
    assert str(tmp_path) in task.info.artifact_uri
    assert task.info.status == "FINISHED"


def test_a_stream_runs_without_mlflow_and_syncs_later(
    cli: CliRunner,
    stream: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert cli("run", str(stream)).code == 0
    assert "could not be sent" in caplog.text
    assert {row["mlflow_run"] for row in cli("deltas", "--json").json} == {None}
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert cli("run", str(stream)).code == 0
    assert all(row["mlflow_run"] for row in cli("deltas", "--json").json)
    mlflow, experiment = client(tmp_path / "home")
    assert len(mlflow.search_runs([experiment])) == 4


TEXTS = ["cat purr meow", "lovely bright superb", "wave coral"]


def test_the_champion_is_served_by_mlflow_alone(
    cli: CliRunner,
    stream: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    assert cli("run", str(stream)).code == 0
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(TEXTS))
    expected = [json.loads(line) for line in cli("predict", "--task", "mood", str(lines)).out.splitlines()]
    process = [sys.executable, str(PROCESSES / "mlflow_model.py"), "models:/mood@champion"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}"}
    done = subprocess.run(
        [*process, json.dumps(TEXTS)], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert [answer | {"score": None} for answer in answers] == [answer | {"score": None} for answer in expected]
    assert [answer["score"] for answer in answers] == pytest.approx([answer["score"] for answer in expected])
    folder = next((tmp_path / "home" / "mlflow-artifacts").rglob("MLmodel")).parent
    assert (folder / "served.py").exists()
    assert not list(folder.rglob("*.pkl")), "models from code, never pickled"
    assert not list(folder.rglob("*.safetensors")), "the delta by reference"
    assert "inputs" in (folder / "MLmodel").read_text()
    assert (folder / "input_example.json").exists()


def test_a_model_version_is_pinned_to_its_delta(
    cli: CliRunner,
    tmp_path: Path,
    bert_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = write_task(tmp_path, "mood") | {"backbone": str(bert_folder), "budget": {"epochs": 0}}
    file, home = tmp_path / "mood.yaml", tmp_path / "home"
    file.write_text(yaml.safe_dump(task), encoding="utf-8")
    assert [cli("learn", str(file)).code for _ in range(2)] == [0, 0]
    set_tracking_uri(f"sqlite:///{home / 'mlflow.db'}")
    serving = pyfunc.load_model("models:/mood@champion").predict(TEXTS)
    assert set(serving["delta"]) == {"mood@2"}
    first = pyfunc.load_model("models:/mood/1")
    assert set(first.predict(TEXTS)["delta"]) == {"mood@1"}
    with pytest.raises(InputError, match="the columns 'words' and no text"):
        first.predict(pd.DataFrame({"words": TEXTS}))
    assert cli("deltas", "archive", "mood@2").code == 0
    with Registry.open(f"sqlite:///{home / 'registry.db'}", str(home / "blobs")) as registry:
        digest = registry.delta("mood@2").values
    with pytest.raises(MlflowException, match="alias champion not found"):
        pyfunc.load_model("models:/mood@champion")
    assert set(pyfunc.load_model("models:/mood/2").predict(TEXTS)["delta"]) == {"mood@2"}, "archived, not gone"

    monkeypatch.setenv("CONTINUAL_REGISTRY_URL", f"sqlite:///{tmp_path / 'nowhere' / 'registry.db'}")
    with pytest.raises(InputError, match="set CONTINUAL_REGISTRY_URL to where it is now"):
        pyfunc.load_model("models:/mood/2")
    assert not (tmp_path / "nowhere").exists(), "reading makes no registry"
    monkeypatch.delenv("CONTINUAL_REGISTRY_URL")
    (home / "blobs" / digest[:2] / digest[2:]).unlink()
    with pytest.raises(Exception, match=f"blob {digest} is missing"):
        pyfunc.load_model("models:/mood/2")
    with Registry.open(f"sqlite:///{home / 'registry.db'}", str(home / "blobs")) as registry:
        purge_task(registry, "mood")
    with pytest.raises(NotFound, match="was purged"):
        pyfunc.load_model("models:/mood/1")
    assert cli("mlflow", "sync").code == 0
    with pytest.raises(MlflowException, match="not found"):
        pyfunc.load_model("models:/mood/1")


SECRET = "l0vel4ce"


def test_no_password_reaches_mlflow_or_a_message(
    cli: CliRunner,
    tmp_path: Path,
    bert_folder: Path,
    postgres: Server,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    task = write_task(tmp_path, "mood") | {"backbone": str(bert_folder), "budget": {"epochs": 0}}
    file, home = tmp_path / "mood.yaml", tmp_path / "home"
    file.write_text(yaml.safe_dump(task), encoding="utf-8")
    url = postgres_url.replace("postgres@", f"postgres:{SECRET}@")
    monkeypatch.setenv("CONTINUAL_REGISTRY_URL", url)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:{SECRET}@127.0.0.1:9/?token={SECRET}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    results = [
        cli("learn", str(file)),
        cli("mlflow", "--json"),
        cli("mlflow", "sync"),
        cli("ui"),
        cli("tasks", "--json"),
    ]
    assert [result.code for result in results] == [0, 0, 1, 2, 0]
    assert "127.0.0.1" in results[1].out, "the reason is told"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    results += [cli("mlflow", "sync", "--json")]
    assert results[-1].code == 0
    set_tracking_uri(f"sqlite:///{home / 'mlflow.db'}")
    assert set(pyfunc.load_model("models:/mood@champion").predict(TEXTS)["task"]) == {"mood"}
    monkeypatch.delenv("CONTINUAL_REGISTRY_URL")
    with pytest.raises(InputError, match=r"postgresql\+psycopg://\*\*\*@.*set CONTINUAL_REGISTRY_URL"):
        pyfunc.load_model("models:/mood@champion")
    for bad in (url.replace("postgres:", "postgres:x", 1).replace("127.0.0.1", "127.0.0.2"), f"oracel://a:{SECRET}@b"):
        monkeypatch.setenv("CONTINUAL_REGISTRY_URL", bad)
        results += [cli("tasks"), cli("db", "upgrade"), cli("verify")]
        assert [result.code for result in results[-3:]] == [2, 2, 2]
    assert not [result for result in results if SECRET in result.out + result.err]
    assert SECRET not in caplog.text
    files = [path for path in home.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_a_port_in_use_is_an_error(cli: CliRunner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for port in (listener.getsockname()[1], 70000, -1):
            result = cli("ui", "--port", str(port))
            assert result.code == 2
            assert f"cannot listen on port {port}" in result.err
