"""Tasks that score below answers without learning are named in the report, on its page and by the listing of a task."""

from pathlib import Path

from rich.console import Console

from continual.cli.tables import print_report
from continual.cli.task_tables import print_task
from continual.reports.html import stream_page
from continual.reports.report import below_baseline, stream_report
from continual.reports.task import task_report
from registry import Registry
from tests.helpers.registries import accuracy, begin, delta_record, make_registry, task_record


def learn(registry: Registry, task: str, number: int, *, score: float, baseline: float | None) -> None:
    scores = [accuracy(score)]
    if baseline is not None:
        scores.append(accuracy(baseline, metric="baseline", mode="calibration"))
    with registry.unit_of_work() as unit:
        unit.add_task(task_record(task))
        unit.mark_learned("core", number, delta=unit.add_delta(delta_record(registry, task), scores=scores))


def test_a_score_below_a_trivial_answers_is_named_everywhere(tmp_path: Path) -> None:
    with make_registry(tmp_path) as registry:
        begin(registry, "below", "equal", "older")
        learn(registry, "below", 0, score=0.4, baseline=0.62)
        learn(registry, "equal", 1, score=0.62, baseline=0.62)
        learn(registry, "older", 2, score=0.1, baseline=None)
        document = stream_report(registry, "core")
        page, listing = stream_page(registry, document), task_report(registry, "below")
    fields = {task["task"]: (task["baseline"], task["baseline_score"]) for task in document["per_task"]}
    assert fields == {"below": ("majority", 0.62), "equal": ("majority", 0.62), "older": (None, None)}
    assert [task["task"] for task in document["per_task"] if below_baseline(task)] == ["below"]
    sentence = "test score 0.400 is below 0.620, that of the most frequent label of train for every row"
    assert page.count(sentence) == 1
    console = Console(width=400)
    with console.capture() as printed:
        print_report(console, document)
        print_task(console, listing)
    assert printed.get().count(f"below: {sentence}") == 1
    assert printed.get().count(f"below@1: {sentence}") == 1
