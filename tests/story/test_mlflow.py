"""MLflow shows what the registry knows, and its absence costs nothing."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from test_cli import Run, cli, stream, write_stream  # noqa: F401  (fixtures)

EXPERIMENT = "continual"


def client(home: Path) -> tuple[MlflowClient, str]:
    found = MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    return found, found.get_experiment_by_name(EXPERIMENT).experiment_id


def test_one_run_per_stream_and_one_nested_per_task(cli: Run, stream: Path, tmp_path: Path) -> None:  # noqa: F811
    assert cli("run", str(stream)).code == 0
    mlflow, experiment = client(tmp_path / "home")
    runs = {run.info.run_name: run for run in mlflow.search_runs([experiment])}
    assert set(runs) == {"small", "animals@1", "mood@1", "place@1"}
    parent = runs["small"].info.run_id
    assert {path.path for path in mlflow.list_artifacts(parent)} == {
        "matrix_oracle.png",
        "matrix_routed.png",
        "report.json",
    }
    assert runs["small"].data.metrics["oracle_forgetting"] == 0.0
    assert {"routed_acc", "routed_routing_accuracy"} <= set(runs["small"].data.metrics)
    task = runs["mood@1"]
    assert task.data.tags["mlflow.parentRunId"] == parent
    assert task.data.params["settings.rank"] == "2"
    assert len(mlflow.get_metric_history(task.info.run_id, "curve_validation_accuracy")) == 2
    assert [path.path for path in mlflow.list_artifacts(task.info.run_id, "delta")] == ["delta/mood@1.safetensors"]
    assert str(tmp_path) in task.info.artifact_uri
    assert task.info.status == "FINISHED"


def test_a_stream_goes_on_without_mlflow_and_sends_later(
    cli: Run,  # noqa: F811
    stream: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert cli("run", str(stream)).code == 0
    assert "could not be told" in caplog.text
    assert {row["mlflow_run"] for row in cli("deltas", "--json").json} == {None}
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert cli("run", str(stream)).code == 0
    assert all(row["mlflow_run"] for row in cli("deltas", "--json").json)
    mlflow, experiment = client(tmp_path / "home")
    assert len(mlflow.search_runs([experiment])) == 4
