"""The HTML page of a stream: the whole report, for any number of tasks and any names."""

from pathlib import Path
from typing import Any

import pytest

from continual.escaping import escape_control_characters
from continual.reports.html import stream_page
from continual.reports.report import stream_report
from registry import purge_task
from tests.helpers.pages import HOSTILE, Parsed, fill_stream, leaves


def paged(folder: Path, *tasks: str, **options: Any) -> tuple[dict[str, Any], Parsed]:
    with fill_stream(folder, tasks, **options) as registry:
        document = stream_report(registry, "core")
        html = stream_page(registry, document)
    assert leaves(html) == []
    return document, Parsed(html)


def test_a_page_shows_the_whole_report(tmp_path: Path) -> None:
    document, page = paged(tmp_path, "sst2", "trec", "mnli", unlearned=["cola"])
    assert page.inside("h1") == ["Stream core"]
    assert page.inside("h2") == [
        "In short",
        "Not learned",
        "Scores with the task known",
        "Scores with the task routed",
        "Score of each task",
        "Where inputs were sent",
        "Learning curves",
        "Lineage",
        "Costs",
    ]
    assert page.inside("dd")[::2][:2] == [f"{document[kind]['acc']:.3f}" for kind in ("oracle", "routed")]
    cells = page.inside("td")
    for kind in ("oracle", "routed"):
        values = [f"{value:.2f}" for row in document[kind]["matrix"] for value in row if value is not None]
        assert values == cells[: len(values)]
        del cells[: len(values)]
    assert cells == ["80.0", "20.0", "80.0", "20.0", "100.0"], "what was sent where, in percent"
    texts = page.inside("bdi")
    assert {"<b>the loss</b>" in text for text in texts if text.startswith("LearnError")} == {True}
    for pair in document["routed"]["confused"]:
        assert pair["advice"] in texts
    for task in document["per_task"]:
        assert {task["task"], task["delta"], f"{task['score']:.3f}"} <= set(texts)
    assert page.inside("text") == ["warm start 1", "warm start 0.5", "warm start 0.5", "sst2@1", "trec@1", "mnli@1"]
    gains = [f"{0.5 + 0.4 / 3 - 0.6:.3f}"] * 2
    assert texts.count(gains[0]) == 2, "one for each edge of mnli"


def test_hostile_names_break_nothing(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    _, plain = paged(tmp_path, *(f"task{i}" for i in range(len(HOSTILE))), unlearned=["left"])
    _, page = paged(tmp_path_factory.mktemp("hostile"), *HOSTILE, unlearned=["<i>left</i>"])
    assert page.tags == plain.tags
    assert {escape_control_characters(name) for name in (*HOSTILE, "<i>left</i>")} <= set(page.inside("bdi"))


def test_a_stream_without_learned_tasks(tmp_path: Path) -> None:
    document, page = paged(tmp_path, unlearned=["sst2"])
    assert document["tasks"] == []
    assert page.inside("h2") == ["In short", "Not learned"]
    assert page.inside("dd")[0] == "–"


@pytest.mark.parametrize(("tasks", "dense"), [(1, False), (60, True)])
def test_one_task_and_many(tmp_path: Path, tasks: int, dense: bool) -> None:
    _, page = paged(tmp_path, *(f"task{i}" for i in range(tasks)))
    assert page.of("class").count("heat dense") == 3 * dense
    assert len([text for text in page.inside("bdi") if text == "task0"]) >= 4
    assert len(page.of("points")) == tasks


def test_a_purged_task_is_blank(tmp_path: Path) -> None:
    with fill_stream(tmp_path, ["sst2", "trec"]) as registry:
        purge_task(registry, "sst2")
        page = Parsed(stream_page(registry, stream_report(registry, "core")))
    assert page.inside("td") == ["0.45", "0.70", "0.40", "100.0"]
    assert len(page.of("points")) == 1
