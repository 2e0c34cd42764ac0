"""Arriving tasks as a user runs them: submitted, dropped into a folder, learned, cancelled and retried."""

import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from continual import Learner
from continual.callbacks import RunCallbacks
from registry import Registry, find_damage
from tasks import read_task
from tasks.errors import InputError
from tests.helpers.cli import CliRunner
from tests.helpers.databases import registry_url
from tests.helpers.fresh_processes import run_python
from tests.helpers.tiny_tasks import rows_of, write_task

BUDGET = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "max_length": 32}


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("continual.streams.arrivals.POLL_SECONDS", 0.02)
    monkeypatch.setattr("continual.streams.arrivals.CANCEL_CHECK_SECONDS", 0.0)
    monkeypatch.setattr("continual.learning.checkpoint.MIN_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr("continual.learning.checkpoint.MAX_OVERHEAD", 1e9)


@pytest.fixture
def learner(bert_folder: Path, tmp_path: Path, database: str) -> Iterator[Learner]:
    registry = Registry.open(database, f"{tmp_path}/home/blobs")
    with Learner.open(str(bert_folder), registry, device="cpu", dtype="float32") as opened:
        yield opened


def task_file(folder: Path, task: str, **changed: Any) -> Path:
    """Write a task file in `folder`, beside its rows."""
    entry = write_task(folder, task) | {"method": {"name": "lora", "rank": 2}, "budget": BUDGET}
    file = folder / f"{task}.yaml"
    file.write_text(yaml.safe_dump(entry | changed))
    return file


def deltas(learner: Learner) -> list[str]:
    return [row["delta"] for row in learner.registry.deltas()]


def outcome(learner: Learner) -> list[tuple[str, str | None]]:
    return [(row["state"], row["delta"]) for row in learner.registry.arrivals()]


def test_task_files_in_a_watched_folder(
    cli: CliRunner, bert_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Valid, without rows, half written, and changed files; beside an urgent task that was submitted."""
    folder = tmp_path / "dropped"
    folder.mkdir()
    task_file(folder, "animals")
    task_file(folder, "mood", source={"path": "json", "data_files": {"train": "nowhere.jsonl"}})
    whole = task_file(folder, "place").read_text()
    (folder / "place.yaml").write_text(whole[: whole.index("text:")])
    (folder / ".food.yaml").write_text("an editor's draft")
    added = cli("arrivals", "add", str(task_file(tmp_path, "food")), "--priority", "3", "--json")
    assert (added.json[0]["arrival"], added.json[0]["state"], added.json[0]["priority"]) == (1, "waiting", 3)
    watch = ("watch", str(folder), "--idle", "0", "--backbone", str(bert_folder), "--json")
    first = cli(*watch)
    assert first.code == 1, first.err
    assert [row["arrival"] for row in first.json] == [1, 2, 3], "the urgent one came first"
    assert first.err.count("mood: failed") == 2, "it was tried again by itself, after the others"
    assert first.err.count("place.yaml is not submitted") + caplog.text.count("place.yaml is not submitted") == 1
    failed = cli("arrivals", "--state", "failed", "--json").json
    assert [(row["task"], row["attempts"]) for row in failed] == [("mood", 2)]
    assert "nowhere.jsonl" in failed[0]["error"]

    assert cli(*watch).json == [], "what was learned or failed is not submitted again"
    (folder / "place.yaml").write_text(whole)
    task_file(folder, "mood")
    assert cli("arrivals", "retry", "3").code == 0  # as it was submitted: its rows are still nowhere
    second = cli(*watch)
    assert second.code == 1
    assert [row["arrival"] for row in second.json if row["error"] is None] == [4, 5]
    learned = cli("arrivals", "--state", "learned", "--json").json
    assert [row["delta"] for row in learned] == ["food@1", "animals@1", "mood@1", "place@1"]
    assert cli("arrivals", "cancel", "1").code == 2
    assert cli("watch", str(tmp_path / "none"), "--backbone", str(bert_folder)).code == 2
    assert cli("report").code == 2, "there is no stream to report on"


def test_a_task_that_arrives_again_is_a_new_version_that_serves_at_once(learner: Learner, tmp_path: Path) -> None:
    for seed in range(2):
        learner.registry.submit(read_task(task_file(tmp_path, "animals", seed=seed)))
    learner.registry.submit(read_task(task_file(tmp_path, "mood")), priority=1)
    started: list[str] = []
    assert learner.watch(idle=0, callbacks=RunCallbacks(on_start=started.append)) == {3: None, 1: None, 2: None}
    assert started == ["mood", "animals", "animals"]
    assert outcome(learner) == [("learned", "animals@1"), ("learned", "animals@2"), ("learned", "mood@1")]
    text = rows_of("mood", 1, seed=9).texts[0]
    assert learner.predict([text], false_abstentions=0)[0].task == "mood"
    assert find_damage(learner.registry) == []


@pytest.mark.parametrize("by", ["heartbeat", "checkpoint"])
def test_a_task_cancelled_during_training_stops_and_leaves_nothing(
    learner: Learner, tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("continual.streams.arrivals.CANCEL_CHECK_SECONDS", 0.0 if by == "heartbeat" else 1e9)
    number = learner.registry.submit(read_task(task_file(tmp_path, "animals")))
    steps: list[float] = []

    def cancel(_task: str, done: int, total: int) -> None:
        steps.append(done / total)
        if done == 1:
            learner.registry.cancel_arrival(number)

    if by == "checkpoint":
        monkeypatch.setattr("continual.streams.arrivals.heartbeat", lambda *_, **__: True)
    assert learner.watch(idle=0, callbacks=RunCallbacks(on_step=cancel)) == {}
    assert len(steps) == 1 if by == "heartbeat" else steps[-1] == 0.5, "at once, or at the end of the first epoch"
    assert (outcome(learner), deltas(learner)) == ([("cancelled", None)], [])
    learner.registry.retry_arrival(number)
    assert learner.watch(idle=0) == {number: None}
    assert outcome(learner) == [("learned", "animals@1")]
    assert find_damage(learner.registry) == []


def test_a_terminated_worker_releases_its_task_for_the_next(learner: Learner, tmp_path: Path) -> None:
    learner.registry.submit(read_task(task_file(tmp_path, "animals")))

    def end(_task: str, done: int, total: int) -> None:
        if done == total:
            signal.raise_signal(signal.SIGINT)

    assert learner.watch(callbacks=RunCallbacks(on_step=end)) == {}
    assert outcome(learner) == [("waiting", None)]
    noted: list[str] = []
    assert learner.watch(idle=0, callbacks=RunCallbacks(on_note=lambda _, note: noted.append(note))) == {1: None}
    assert "goes on after epoch 1" in noted
    assert find_damage(learner.registry) == []


def test_an_invalid_task_fails_alone(learner: Learner, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    bad: dict[str, dict[str, Any]] = {
        "mood": {"text": "no such column"},
        "place": {"method": "no such method"},
        "food": {"source": {"path": "json", "data_files": {"train": "nowhere.jsonl"}}},
    }
    for name, changed in bad.items():
        learner.registry.submit(read_task(task_file(tmp_path, name, **changed)))
    learner.registry.submit(read_task(task_file(tmp_path, "animals")))
    errors = learner.watch(idle=0)
    assert {number: error is None for number, error in errors.items()} == {1: False, 2: False, 3: False, 4: True}
    for number, message in ((1, "no such column"), (2, "no such method"), (3, "nowhere.jsonl")):
        assert message in str(errors[number])
    assert caplog.text == "", "what a user can mend is no fault of the program"
    with pytest.raises(InputError, match="no folder to watch"):
        learner.watch(tmp_path / "animals.yaml")


def test_three_workers_one_killed_learn_each_arrival_once(bert_folder: Path, tmp_path: Path, postgres_url: str) -> None:
    (tmp_path / "registry-url").write_text(postgres_url)
    blobs = tmp_path / "home/blobs"
    with Registry.open(registry_url(tmp_path), str(blobs)) as registry:
        for seed in range(2):
            for task in ("animals", "mood", "place", "food"):
                registry.submit(read_task(task_file(tmp_path, task, seed=seed)))
    run_python("-m", "tests.helpers.processes.arrival_workers", postgres_url, tmp_path, bert_folder)
    with Registry.open(postgres_url, str(blobs)) as registry:
        rows = registry.arrivals()
        assert {row["state"] for row in rows} == {"learned"}
        names = [f"{task}@{version}" for version in (1, 2) for task in ("animals", "mood", "place", "food")]
        assert [row["delta"] for row in rows] == names, "versions follow the arrivals"
        assert sorted(row["delta"] for row in registry.deltas()) == sorted(names)
        assert {row["attempts"] for row in rows} <= {1, 2}, "none was begun a third time"
        assert find_damage(registry) == []
