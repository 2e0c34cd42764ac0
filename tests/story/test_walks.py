"""Three walks through the public face: new tasks each week, a table for a paper, and an operator's day."""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import yaml

from continual import Learner, read_stream
from continual.experiments.strategies import select_strategies
from tests.helpers.cli import CliRunner
from tests.helpers.live_server import server, wait_until
from tests.helpers.mlflow_runs import copy_empty_store
from tests.helpers.tiny_tasks import rows_of, write_task

BUDGET = {"epochs": 1, "batch_size": 16, "learning_rate": 1e-2, "max_length": 16}


@pytest.fixture(autouse=True)
def _datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def tickets(task: str, rows: int) -> pd.DataFrame:
    drawn = rows_of(task, rows)
    return pd.DataFrame({"ticket": range(rows), "message": drawn.texts, "topic": drawn.labels})


def shorten(stream: Path) -> None:
    """Edit a drafted stream file as its reader would, here for the sake of time."""
    content: dict[str, Any] = yaml.safe_load(stream.read_text(encoding="utf-8"))
    stream.write_text(yaml.safe_dump(content | {"budget": BUDGET, "warm_start": "scratch"}), encoding="utf-8")


def test_an_engineer_learns_new_tasks_each_week(cli: CliRunner, bert_folder: Path, tmp_path: Path) -> None:
    for task in ("animals", "mood"):
        tickets(task, 60).to_csv(tmp_path / f"{task}.csv", index=False)
    stream, backbone = tmp_path / "stream.yaml", ("--backbone", str(bert_folder))
    files = [str(tmp_path / f"{task}.csv") for task in ("animals", "mood")]
    assert cli("init", *files, "--output", str(stream), *backbone).code == 0
    shorten(stream)
    assert cli("run", str(stream), "--check").code == 0
    first = cli("run", str(stream), "--json")
    assert (first.code, first.json["tasks"], first.json["failed"]) == (0, ["animals", "mood"], [])

    tickets("place", 60).to_csv(tmp_path / "place.csv", index=False)  # the next week's task
    weekly = tmp_path / "place.yaml"
    assert cli("init", str(tmp_path / "place.csv"), "--output", str(weekly), *backbone).code == 0
    shorten(weekly)
    assert cli("run", str(weekly)).code == 0

    tickets("animals", 90).to_csv(tmp_path / "animals.csv", index=False)  # a file has grown meanwhile
    refused = cli("run", str(stream))
    assert refused.code == 2
    assert "continual learn STREAM.yaml --task animals" in refused.err
    assert cli("learn", str(stream), "--task", "animals").code == 0
    assert {row["delta"] for row in cli("deltas", "--json").json} == {"animals@1", "animals@2", "mood@1", "place@1"}

    inbox, answers = tmp_path / "inbox.csv", tmp_path / "answers.csv"
    tickets("mood", 8).drop(columns="topic").to_csv(inbox, index=False)
    asked = cli("predict", str(inbox), "--text-column", "message", "--task", "mood", "--output", str(answers))
    assert asked.code == 0, asked.err
    joined = pd.read_csv(inbox).merge(pd.read_csv(answers), on="ticket")
    assert len(joined) == 8
    assert set(joined["label"]) <= set(rows_of("mood", 4).labels)
    wrong = cli("errors", "mood", "--json")
    assert wrong.code == 0
    assert all(row["label"] != row["answer"] for row in wrong.json)


def test_a_researcher_makes_a_table(bert_folder: Path, tmp_path: Path) -> None:
    copy_empty_store(tmp_path / "home")
    tasks = [write_task(tmp_path, task, train=24) for task in ("mood", "place")]
    content = {"name": "paper", "method": {"name": "lora", "rank": 2}, "budget": BUDGET, "warm_start": "scratch"}
    (tmp_path / "paper.yaml").write_text(yaml.safe_dump(content | {"tasks": tasks}))
    stream = read_stream(tmp_path / "paper.yaml")
    with Learner.open(str(bert_folder), registry=tmp_path / "home", device="cpu") as learner:
        assert learner.run(stream) == {}
        report = learner.report("paper")
        table = learner.compare(stream, select_strategies(("isolated", "sequential_delta")))
    frame = table.to_frame()
    assert list(frame.index) == ["isolated", "sequential_delta"]
    assert frame.loc["isolated", "oracle_forgetting"] == report["oracle"]["forgetting"] == 0
    assert report.measures().loc["acc", "oracle"] == pytest.approx(report.to_frame()["final_oracle"].mean())
    assert r"\toprule" in table.to_latex(caption="Strategies")
    table.to_csv(tmp_path / "table.csv")
    assert list(pd.read_csv(tmp_path / "table.csv", index_col=0).index) == list(frame.index)
    report.plot().savefig(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 1000


def test_an_operator_runs_it_on_a_server(
    cli: CliRunner, postgres_url: str, bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTINUAL_REGISTRY_URL", postgres_url)
    content = {"name": "desk", "backbone": str(bert_folder), "budget": BUDGET, "warm_start": "scratch"}
    file = tmp_path / "desk.yaml"
    file.write_text(yaml.safe_dump(content | {"tasks": [write_task(tmp_path, task) for task in ("animals", "mood")]}))
    assert cli("run", str(file)).code == 0
    secret = cli("keys", "add", "website", "--json").json[0]["secret"]
    with Learner.open(str(bert_folder), registry=tmp_path / "home", device="cpu") as learner, server(learner) as served:
        rows = [{"text": "purr meow", "ticket": 7}, {"text": "purr meow", "task": "mood", "ticket": 8}]
        assert served.client.post("/v1/predict", json={"rows": rows}).status_code == 401
        served.client.headers["authorization"] = f"Bearer {secret}"
        answers = served.client.post("/v1/predict", json={"rows": rows}).json()
        assert [answer["ticket"] for answer in answers["predictions"]] == [7, 8]
        assert answers["predictions"][1]["delta"] == "mood@1"
        assert cli("learn", str(file), "--task", "mood").code == 0
        wait_until(lambda: {row["champion"] for row in served.client.get("/v1/tasks").json()} >= {"mood@2"})
    assert cli("verify").code == 0
    assert cli("db", "dump", str(tmp_path / "backup.zip")).code == 0
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/home/mlflow.db")
    names = set(mlflow.search_runs(search_all_experiments=True)["tags.mlflow.runName"])
    assert {"animals@1", "mood@1", "mood@2"} <= names
