"""Trainings that did not improve on their start are said to be so in the report, on its page and in comparisons."""

from pathlib import Path
from typing import Any

from rich.console import Console

from continual.cli.tables import print_report
from continual.reports.html import stream_page
from continual.reports.report import kept_start, stream_report
from registry import Registry, Score
from tests.helpers.registries import accuracy, begin, delta_record, make_registry, task_record


def learn(registry: Registry, task: str, number: int, epochs: list[tuple[float, float | None]]) -> None:
    """Register a task whose epochs have these validation scores and losses, the start first."""
    scores: list[Score] = [accuracy(0.8), accuracy(0.9, split="validation")]
    for epoch, (value, loss) in enumerate(epochs):
        scores.append(accuracy(value, split="validation", step=epoch, mode="curve"))
        if loss is not None:
            scores.append(accuracy(loss, split="validation", metric="loss", step=epoch, mode="calibration"))
    with registry.unit_of_work() as unit:
        unit.add_task(task_record(task))
        delta = unit.add_delta(delta_record(registry, task), scores=scores)
        unit.mark_learned("core", number, delta=delta)


def test_a_start_that_stayed_best_is_named_everywhere(tmp_path: Path) -> None:
    with make_registry(tmp_path) as registry:
        begin(registry, "kept", "tied", "older", "untrained")
        learn(registry, "kept", 0, [(0.9, 0.2), (0.9, 0.3), (0.8, 0.1)])
        learn(registry, "tied", 1, [(0.9, 0.3), (0.9, 0.2), (0.9, 0.25)])
        learn(registry, "older", 2, [(0.7, None), (0.9, None), (0.9, None)])  # a release without validation losses
        learn(registry, "untrained", 3, [(0.9, 0.2)])
        document = stream_report(registry, "core")
        page = stream_page(registry, document)
    tasks: dict[str, Any] = {task["task"]: task for task in document["per_task"]}
    assert {name: (task["best_epoch"], task["epochs"]) for name, task in tasks.items()} == {
        "kept": (0, 2),
        "tied": (1, 2),
        "older": (1, 2),
        "untrained": (0, 0),
    }
    assert [name for name, task in tasks.items() if kept_start(task)] == ["kept"]
    sentence = "training did not improve on the start: epoch 0 of 2 is kept, validation score 0.900"
    assert page.count(sentence) == 1
    console = Console(width=400)
    with console.capture() as printed:
        print_report(console, document)
    assert printed.get().count(f"kept: {sentence}") == 1
