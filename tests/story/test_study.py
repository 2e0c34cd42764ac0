"""`continual study`: its listing, results, pages, and errors."""

from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from continual.experiments.studies import STUDIES
from tests.helpers.cli import CliRunner
from tests.helpers.tiny_tasks import write_task

SMALL = ("--set", "methods=[{name: lora, rank: 1}]", "--set", "rates=[1.0]")


@pytest.fixture
def stream(tmp_path: Path, bert_folder: Path) -> Path:
    content = {
        "name": "small",
        "backbone": str(bert_folder),
        "budget": {"epochs": 1, "batch_size": 8, "learning_rate": 1.0e-2, "max_length": 16},
        "tasks": [write_task(tmp_path, task) for task in ("animals", "mood", "place")],
    }
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return file


def test_studies_are_listed(cli: CliRunner) -> None:
    rows = cli("study", "--json").json
    assert [row["study"] for row in rows] == list(STUDIES)
    assert "fig. 1" in cli("study").out


def test_a_study_is_run_and_written_to_a_page(cli: CliRunner, stream: Path, tmp_path: Path) -> None:
    page = tmp_path / "size.html"
    words = ("study", "size", str(stream), "--tasks", "place,mood", "--seeds", "0,1", *SMALL)
    result = cli(*words, "--json", "--html", str(page))
    assert result.code == 0, result.err
    assert result.json["tasks"] == ["mood", "place"]
    assert result.json["seeds"] == [0, 1]
    assert len(result.json["trials"]) == 8  # two tasks, two seeds, LoRA and full fine-tuning
    assert {"task", "seed", "method", "outcome"} <= result.json["trials"][0].keys()
    table = result.json["tables"]["Score less that of full fine-tuning"]
    assert [row["method"] for row in table] == ["lora rank 1", "full"]
    html = page.read_text(encoding="utf-8")
    assert html.count("<svg") == 1
    assert "lora rank 1" in html

    (ledger,) = (tmp_path / "home" / "studies").iterdir()
    lines = ledger.read_text().splitlines()
    assert len(lines) == 8
    shown = cli(*words)
    assert "Score less that of full fine-tuning" in shown.out
    assert ledger.read_text().splitlines() == lines  # nothing was trained again
    assert cli("deltas", "--json").json == []

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("continual").experiment_id])
    assert run.info.run_name == "size: small"
    assert run.info.status == "FINISHED"
    assert run.data.params["settings.rates"] == "[1.0]"
    assert run.data.metrics["median_gap.full"] == 0.0
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"study.json", "score_against_size.png", "test_score_of_each_task.json"} <= files


def test_a_study_runs_without_mlflow(
    cli: CliRunner, stream: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result = cli("study", "size", str(stream), "--tasks", "mood", *SMALL)
    assert result.code == 0, result.err
    assert "the study could not be logged to MLflow" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nope",), "not known. Known: size"),
        (("size",), "needs a stream file; settings: methods, rates"),
        (("size", "STREAM", "--set", "shots"), "write --set NAME=VALUE"),
        (("size", "STREAM", "--set", "methods=[lora"), "is no YAML"),
        (("size", "STREAM", "--seeds", "0,-1"), "whole numbers from 0"),
        (("size", "STREAM", "--tasks", "mood,nope"), "'nope' are not in the stream; it has animals, mood, place"),
        (("size", "STREAM", "--html", "/nowhere/at/all.html"), "cannot be written"),
        (("templates", "STREAM"), "tasks without a template: animals, mood, place"),
    ],
)
def test_invalid_arguments_are_refused_at_once(
    cli: CliRunner, stream: Path, words: tuple[str, ...], message: str
) -> None:
    result = cli("study", *(str(stream) if word == "STREAM" else word for word in words))
    assert result.code == 2
    assert message in result.err
    assert result.out == ""
