"""What MLflow shows of a task's run, and homes that are copied with their MLflow store."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import mlflow.data
import pytest

from continual.settings import Locations
from continual.tracking.client import MILLISECONDS
from continual.tracking.local_store import relocate_artifacts
from registry import DataRecord, Registry, purge_task
from tests.helpers.mlflow_runs import client_of, places_of, runs_of, sync_all
from tests.helpers.registries import learn, learn_stream

DIGESTS = {"train": "a1" * 32, "test": "b2" * 32}
DATA = DataRecord(
    spec={"source": {"path": "csv", "data_files": "https://user:secret@example.org/rows.csv"}},
    folder=None,
    seed=7,
    fingerprints=DIGESTS,
    rows={"train": 40, "test": 10},
)


def test_a_tasks_run_describes_its_delta(
    registry: Registry, places: Locations, capfd: pytest.CaptureFixture[str]
) -> None:
    learn(registry, "s|st2", score=0.75, data=DATA, seconds=90.0, versions={"continual": "0.1.0"})
    sync_all(registry, places)
    (run,) = runs_of(places)
    note = run.data.tags["mlflow.note.content"]
    for row in ("| task | s\\|st2 |", "| labels | no, yes |", "| test | accuracy | 0.7500 |  | 10 |", DIGESTS["test"]):
        assert row in note
    assert (run.data.tags["mlflow.source.name"], run.data.tags["mlflow.source.type"]) == ("continual 0.1.0", "LOCAL")
    learned_at = int(registry.delta("s|st2@1").created_at.timestamp() * MILLISECONDS)
    assert (run.info.start_time, run.info.end_time) == (learned_at - 90 * MILLISECONDS, learned_at)
    assert capfd.readouterr() == ("", ""), "no bars of progress"


def test_a_tasks_run_has_its_rows_as_inputs(registry: Registry, places: Locations) -> None:
    learn(registry, "sst2", data=DATA)
    sync_all(registry, places)
    (run,) = runs_of(places)
    inputs = {item.tags[0].value: item.dataset for item in run.inputs.dataset_inputs}
    assert {split: dataset.digest for split, dataset in inputs.items()} == {
        split: digest[:36] for split, digest in DIGESTS.items()
    }
    assert json.loads(inputs["train"].profile) == {"num_rows": 40, "sha256": DIGESTS["train"]}
    source = mlflow.data.get_source(inputs["train"]).to_dict()
    assert "rows.csv" in source["tags"]["source"]
    assert "secret" not in source["tags"]["source"]
    assert source["tags"]["seed"] == 7


def test_a_streams_run_ends_when_its_last_task_was_learned(registry: Registry, places: Locations) -> None:
    learn_stream(registry, "sst2", "trec")
    sync_all(registry, places)
    stream, last = registry.stream("core"), registry.delta("trec@1")
    run = client_of(places).get_run(stream.mlflow_run)
    times = (int(moment.timestamp() * MILLISECONDS) for moment in (stream.created_at, last.created_at))
    assert (run.info.start_time, run.info.end_time) == tuple(times)


def test_a_purged_task_leaves_no_record_of_its_rows(registry: Registry, places: Locations) -> None:
    for task in ("sst2", "trec"):
        learn(registry, task, data=DATA)
    sync_all(registry, places)
    purge_task(registry, "sst2")
    sync_all(registry, places)
    with sqlite3.connect(places.mlflow.removeprefix("sqlite:///")) as database:
        assert [line for line in database.iterdump() if "sst2" in line] == []
    (run,) = runs_of(places)
    assert len(run.inputs.dataset_inputs) == len(DIGESTS)


@pytest.fixture
def copied(registry: Registry, places: Locations, tmp_path: Path) -> Iterator[tuple[Registry, Locations]]:
    """A copy of a home with two tasks."""
    learn_stream(registry, "sst2", "trec")
    sync_all(registry, places)
    shutil.copytree(places.home, tmp_path / "copy" / "home")
    copy = replace(places_of(tmp_path / "copy"), registry=f"sqlite:///{tmp_path}/copy/home/registry.db")
    if "sqlite" not in places.registry:
        pytest.skip("the registry is not in the home")
    with Registry.open(copy.registry, copy.blobs) as opened:
        yield opened, copy


def digests(home: Path) -> dict[str, str]:
    return {
        str(file.relative_to(home)): sha256(file.read_bytes()).hexdigest()
        for file in home.rglob("*")
        if file.is_file() and not file.name.endswith(("-wal", "-shm"))
    }


def test_a_copied_home_has_artifacts_of_its_own(copied: tuple[Registry, Locations], places: Locations) -> None:
    registry, copy = copied
    original = digests(places.home)
    purge_task(registry, "sst2")
    learn(registry, "new")
    sync_all(registry, copy)
    assert digests(places.home) == original, "nothing was written or deleted there"
    runs = {run.info.run_name: run for run in runs_of(copy)}
    assert runs.keys() == {"core", "trec@1", "new@1"}
    for run in runs.values():
        assert run.info.artifact_uri.startswith((copy.home / "mlflow-artifacts").as_uri())
    assert list(copy.home.glob("mlflow-artifacts/*/artifacts/delta/new@1.safetensors"))
    assert not list(copy.home.glob("mlflow-artifacts/*/artifacts/delta/sst2@1.safetensors"))
    versions = client_of(copy).search_model_versions("name = 'trec'")
    assert [version.source for version in versions] == [f"{runs['trec@1'].info.artifact_uri}/model"]


def test_a_home_that_stayed_is_left_alone(registry: Registry, places: Locations) -> None:
    learn(registry, "sst2")
    sync_all(registry, places)
    before = digests(places.home)
    relocate_artifacts(places)
    assert digests(places.home) == before
