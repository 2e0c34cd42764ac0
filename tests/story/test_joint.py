"""Joint training of a stream's tasks: each is learned, fails and is registered as alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from continual import Learner, read_stream
from continual.deltas import Delta
from continual.settings import resolve_locations
from continual.training.joint import train_jointly
from continual.transfer.warm_start import initial_delta
from registry import Registry
from tests.helpers.tiny_tasks import write_task

TASKS = ("animals", "mood", "place", "food")
BUDGET = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "max_length": 32}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def learner(bert_folder: Path, tmp_path: Path) -> Iterator[Learner]:
    places = resolve_locations(tmp_path / "home", {})
    registry = Registry.open(places.registry, places.blobs)
    with Learner.open(str(bert_folder), registry, device="cpu", dtype="float32") as learner:
        yield learner


def write_stream(folder: Path, *, joint: int, **of_task: dict[str, Any]) -> Path:
    """Write a stream of four tasks; `of_task` holds changed keys of one of them."""
    entries = [{**write_task(folder, task), **of_task.get(task, {})} for task in TASKS]
    method = {"name": "lora", "rank": 2}
    content = {"name": "four", "method": method, "budget": {**BUDGET, "joint": joint}, "tasks": entries}
    (folder / "stream.yaml").write_text(yaml.safe_dump(content))
    return folder / "stream.yaml"


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the number of tasks that start together, each time."""
    group_sizes: list[int] = []

    def counted(runs: Any, *, seed: int) -> Any:
        group_sizes.append(len(runs))
        return train_jointly(runs, seed=seed)

    monkeypatch.setattr("continual.streams.position_learner.train_jointly", counted)
    return group_sizes


def test_a_stream_is_learned_in_groups(learner: Learner, tmp_path: Path, groups: list[int]) -> None:
    stream = read_stream(write_stream(tmp_path, joint=3, place={"method": "prefix"}))
    assert learner.run(stream) == {}
    assert groups == [3, 1]
    report = learner.report("four")
    assert [task["task"] for task in report["per_task"]] == list(TASKS)
    assert all(task["score"] > 0.5 for task in report["per_task"])
    assert all(task["seconds"] > 0 and task["examples_per_second"] > 0 for task in report["per_task"])
    assert all(score is not None for i, row in enumerate(report["oracle"]["matrix"]) for score in row[: i + 1])
    assert learner.run(stream) == {}, "what was learned together is learned"
    assert groups == [3, 1]


def test_the_group_size_is_not_part_of_the_recipe(learner: Learner, tmp_path: Path, groups: list[int]) -> None:
    assert learner.run(read_stream(write_stream(tmp_path, joint=1))) == {}
    assert learner.run(read_stream(write_stream(tmp_path, joint=4))) == {}
    assert groups == [1, 1, 1, 1]


def test_a_failing_task_affects_no_other(
    learner: Learner, tmp_path: Path, groups: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **options: Any) -> Delta:
        delta = initial_delta(*args, **options)
        return delta.map(lambda tensor: tensor * torch.inf) if delta.head and "good" in delta.head.labels else delta

    monkeypatch.setattr("continual.learning.prepared.initial_delta", broken)
    failed = learner.run(read_stream(write_stream(tmp_path, joint=4)), retries=0)
    assert groups == [4]
    assert list(failed) == ["mood"]
    assert "the training loss became nan" in failed["mood"]
    states = {position.task: position.state for position in learner.registry.positions("four")}
    assert states == {"animals": "learned", "mood": "failed", "place": "learned", "food": "learned"}


def test_an_interrupted_group_resumes(learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = read_stream(write_stream(tmp_path, joint=4))

    def stopped(*args: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("continual.training.joint._losses", stopped)
        with pytest.raises(KeyboardInterrupt):
            learner.run(stream)
    assert {position.state for position in learner.registry.positions("four")} == {"waiting"}
    assert learner.run(stream) == {}
    assert json.dumps(learner.report("four"))
