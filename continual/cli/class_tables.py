"""Tables of the labels of a classification: precision, recall, F1, support and confusions."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from continual.cli.table_layout import TextTable, print_table, print_text
from continual.reports.classes import confusion_matrix

MAX_MATRIX_LABELS = 12  # a larger matrix is a list of its most frequent confusions
SHOWN_PAIRS = 20


def print_classes(console: Console, report: Mapping[str, Any]) -> None:
    """Print the scores and confusions of the labels of a delta; nothing where they were not counted.

    Args:
        console: The console.
        report: An entry of a stream report's `per_task`.
    """
    entries = report["per_class"]
    if not entries:
        return
    rows = [
        (entry["label"], *(f"{entry[key]:.3f}" for key in ("precision", "recall", "f1")), str(entry["support"]))
        for entry in entries
    ]
    _print_title(console, f"Classes of {report['delta']}, on test rows")
    columns = ("label", "precision", "recall", "F1", "support")
    print_table(console, TextTable(columns, rows, [column != "label" for column in columns]))
    if len(entries) <= MAX_MATRIX_LABELS:
        _print_matrix(console, report)
    elif report["confused_labels"]:
        _print_pairs(console, report)


def _print_matrix(console: Console, report: Mapping[str, Any]) -> None:
    labels = [entry["label"] for entry in report["per_class"]]
    rows = [
        (f"{number} {label}", *map(str, counts))
        for number, (label, counts) in enumerate(zip(labels, confusion_matrix(report), strict=True), start=1)
    ]
    columns = ("label \\ answer", *(str(number) for number, _ in enumerate(labels, start=1)))
    _print_title(console, f"Test rows of {report['delta']} by label and answer")
    print_table(console, TextTable(columns, rows, [False, *[True] * len(labels)]))


def _print_pairs(console: Console, report: Mapping[str, Any]) -> None:
    pairs = report["confused_labels"][:SHOWN_PAIRS]
    rows = [(pair["label"], pair["answered"], str(pair["rows"])) for pair in pairs]
    _print_title(console, f"Labels of {report['delta']} that are confused most often")
    print_table(console, TextTable(("label", "answered", "rows"), rows, (False, False, True)))


def _print_title(console: Console, title: str) -> None:
    print_text(console, title, style="bold")
