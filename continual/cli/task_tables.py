"""Tables of one task: what it is, its versions, and the labels of the version that serves."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console

from continual.cli.class_tables import print_classes
from continual.cli.table_layout import TextTable, print_record, print_table, print_text
from continual.cli.tables import format_value
from continual.reports.report import below_baseline

HEADINGS = ("delta", "status", "method", "score", "95 % interval", "ECE", "test rows", "learned on")
NUMERIC = (False, False, False, True, True, True, True, False)
DAY = 10  # characters of a time that are its date


def print_task(console: Console, document: Mapping[str, Any]) -> None:
    """Print a task, its versions, notes on them, and the labels' scores of the version that serves or is the newest.

    Args:
        console: The console.
        document: What `continual.reports.task.task_report` returns.
    """
    versions = document["versions"]
    current = next((version for version in reversed(versions) if version["status"] == "champion"), versions[-1])
    print_text(console, f"Task {document['task']}", style="bold")
    print_record(console, _facts(document, current))
    console.print("Versions", style="bold")
    print_table(console, TextTable(HEADINGS, list(map(_version_row, versions)), NUMERIC))
    for version in versions:
        for note in _notes(version):
            print_text(console, f"{version['delta']}: {note}")
    print_classes(console, current)


def _facts(document: Mapping[str, Any], version: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "kind", f"{document['kind']}, scored by {document['metric']}"
    yield "serves", ", ".join(document["serving"]) or "nothing"
    if document["labels"]:
        yield "labels", f"{len(document['labels'])}: {', '.join(document['labels'])}"
    yield "rows", ", ".join(f"{split} {count}" for split, count in document["rows"].items())
    if version["source"]:
        yield "source", " ".join(f"{key}={value}" for key, value in version["source"].items() if value)
        yield "folder", version["folder"] or "not known"
    yield "backbone", version["backbone"]
    for heading, values in (
        ("method", {"name": version["method"]} | version["settings"]),
        ("budget", version["budget"]),
    ):
        yield heading, " ".join(f"{key}={value}" for key, value in values.items() if value is not None)
    yield "seed", str(version["seed"])


def _version_row(version: Mapping[str, Any]) -> list[str]:
    low, high = (format_value(version[key]) for key in ("score_low", "score_high"))
    first, last = (
        [format_value(version[key]) for key in keys]
        for keys in (("delta", "status", "method", "score"), ("ece", "test_rows"))
    )
    return [*first, f"{low}–{high}", *last, version["created_at"][:DAY]]


def _notes(version: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a version came from, why it does not serve, and what was suspicious in its rows."""
    for parent in version["parents"]:
        yield f"came from {parent['delta']} ({parent['kind'].replace('_', ' ')}, weight {parent['weight']:.2g})"
    if version["reason"]:
        yield version["reason"]
    if note := below_baseline(version):
        yield note
    yield from (f"warning: {warning}" for warning in version["warnings"])
