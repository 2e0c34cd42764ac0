"""Sets of tasks that the router chooses among, and tasks that it never chooses."""

import json
from pathlib import Path
from typing import Any

import pytest

from continual import Learner
from registry.errors import NotFound
from tasks.errors import InputError
from tests.helpers.cli import CliRunner
from tests.helpers.tiny_tasks import rows_of, write_task
from tests.story.test_cli import TASKS
from tests.story.test_cli import write_stream as write_small_stream


def write_stream(folder: Path, backbone: Path, **unrouted: Any) -> Path:
    tasks = [write_task(folder, task) | unrouted.get(task, {}) for task in TASKS]
    return write_small_stream(folder, backbone, tasks=tasks)


def answers(result: Any) -> list[dict[str, Any]]:
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


def test_the_router_chooses_among_the_named_tasks(cli: CliRunner, bert_folder: Path, tmp_path: Path) -> None:
    assert cli("run", str(write_stream(tmp_path, bert_folder))).code == 0
    lines = tmp_path / "lines.txt"
    texts = [str(text) for task in TASKS for text in rows_of(task, 6, seed=3).texts]
    lines.write_text("".join(f"{text}\n" for text in texts))
    free = answers(cli("predict", str(lines), "--abstain", "0", "--all", "--at-least", "0"))
    among = answers(cli("predict", str(lines), "--abstain", "0", "--among", "animals, place"))
    assert {answer["task"] for answer in among} <= {"animals", "place"}
    for everywhere, answer in zip(free, among, strict=True):
        assert answer["routed"]
        assert 0 < answer["confidence"] <= 1
        p = {each["task"]: each["confidence"] for each in everywhere["possible"]}
        if everywhere["confidence"] > 0.999 and everywhere["task"] in ("animals", "place"):
            assert answer["task"] == everywhere["task"]
            assert answer["confidence"] >= p[answer["task"]] - 1e-5
    (alone,) = answers(cli("predict", str(lines), "--among", "mood", "--abstain", "0"))[:1]
    assert (alone["task"], alone["confidence"]) == ("mood", 1.0)
    with Learner.open(str(bert_folder), tmp_path / "home") as learner:
        in_python = learner.predict(texts, among=["animals", "place"], false_abstentions=0)
        assert [answer.task for answer in in_python] == [answer["task"] for answer in among]
        with pytest.raises(NotFound, match="nearest known: mood"):
            learner.predict(texts, among=["mod"])
        with pytest.raises(InputError, match="among no tasks"):
            learner.predict(texts, among=[])
    both = cli("predict", str(lines), "--among", "mood,place", "--task", "mood")
    assert both.code == 2
    assert "leaves it no choice" in both.err


def test_a_task_may_be_left_out_of_routing(cli: CliRunner, bert_folder: Path, tmp_path: Path) -> None:
    stream = write_stream(tmp_path, bert_folder, place={"route": False})
    document = cli("run", str(stream), "--json").json
    assert document["routed"]["matrix"][2][2] is None
    assert document["routed"]["routing_accuracy"] is not None
    assert document["routed"]["acc"] is not None
    lines = tmp_path / "lines.txt"
    lines.write_text("".join(f"{text}\n" for text in rows_of("place", 12, seed=3).texts))
    unnamed = answers(cli("predict", str(lines), "--abstain", "0"))
    assert {answer["task"] for answer in unnamed} <= {"animals", "mood"}
    assert {answer["task"] for answer in answers(cli("predict", str(lines), "--task", "place"))} == {"place"}
    refused = cli("predict", str(lines), "--among", "place,mood")
    assert refused.code == 2
    assert "declares `route: false`" in refused.err
    again = cli("run", str(write_stream(tmp_path, bert_folder)), "--json")
    assert again.code == 0, "what the router may choose is no part of what was learned"
    routed = answers(cli("predict", str(lines), "--abstain", "0"))
    assert "place" in {answer["task"] for answer in routed}
    assert len(answers(cli("predict", str(lines), "--among", "place,mood"))) == 12
    assert json.loads(cli("deltas", "--json").out)[-1]["delta"] == "place@1", "nothing was learned again"


def test_a_value_that_is_not_a_truth_value_is_refused(cli: CliRunner, bert_folder: Path, tmp_path: Path) -> None:
    stream = write_stream(tmp_path, bert_folder, place={"route": "sometimes"})
    refused = cli("run", str(stream))
    assert refused.code == 2
    assert "route" in refused.err
