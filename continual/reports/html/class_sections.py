"""Sections of a page on the labels of each classification: scores, confusions, reliability of the probabilities."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from continual.reports.classes import Document, confusion_matrix
from continual.reports.html.document import Section, Table, render
from continual.reports.html.heatmap import ColorScale, heatmap_table

PERCENT = 100.0
MAX_HEATMAP_LABELS = 30  # a larger matrix is a table of its most frequent confusions
SHOWN_PAIRS = 20
SIDE, MARGIN = 100.0, 6.0  # of a reliability plot, in units of its view box


@dataclass(frozen=True)
class _Bar:
    """One bin of a reliability plot: a bar as high as its accuracy, and a mark at its mean probability."""

    x: float
    width: float
    y: float
    height: float
    mark: float
    text: str


@dataclass(frozen=True)
class _Plot:
    name: str
    ece: float | None
    bars: tuple[_Bar, ...]


def class_sections(tasks: Sequence[Document]) -> Iterator[Section]:
    """Yield a section on the labels of each classification, and one on the reliability of all.

    Args:
        tasks: The entries of a report's `per_task`.
    """
    counted = [task for task in tasks if task["per_class"]]
    for task in counted:
        yield _classes(task)
    if counted:
        text = (
            "Of the answers whose probability is in each tenth, a bar shows the share that is right, a mark the mean "
            "probability. Where the bar is below the mark, the probabilities are too high."
        )
        html = render("reliability.html", plots=[_plot(task) for task in counted], side=SIDE, margin=MARGIN)
        yield Section("Reliability of the probabilities", text, html=html)


def _classes(task: Document) -> Section:
    name, columns = task["task"], ("label", "precision", "recall", "F1", "support")
    keys = ("label", "precision", "recall", "f1", "support")
    table = Table(columns, tuple(tuple(entry[key] for key in keys) for entry in task["per_class"]))
    caption = f"Scores of the labels of {name} on test rows; support: test rows of the label"
    return Section(f"Classes of {name}", html=_confusions(task), table=table, caption=caption)


def _confusions(task: Document) -> Markup:
    """Render the confusion matrix in percent of each label's rows, or the most frequent pairs of many labels."""
    labels, name = [entry["label"] for entry in task["per_class"]], task["task"]
    if len(labels) > MAX_HEATMAP_LABELS:
        pairs = tuple((pair["label"], pair["answered"], pair["rows"]) for pair in task["confused_labels"][:SHOWN_PAIRS])
        table = Table(("label", "answered", "rows"), pairs)
        caption = f"Pairs of labels of {name} that are confused most often"
        return render("pairs.html", table=table, caption=caption)
    matrix = [[PERCENT * rows / max(sum(row), 1) or None for rows in row] for row in confusion_matrix(task)]
    return heatmap_table(
        matrix,
        labels,
        scale=ColorScale(0.0, PERCENT),
        caption=f"Answers of {name}, in percent of the test rows of each label",
        corner="label",
        spec=".0f",
    )


def _plot(task: Document) -> _Plot:
    bars = tuple(_bar(entry, task["task"]) for entry in task["reliability"] if entry["rows"])
    return _Plot(task["task"], task["ece"], bars)


def _bar(entry: Mapping[str, Any], name: str) -> _Bar:
    x, width, height = SIDE * entry["low"], SIDE * (entry["high"] - entry["low"]), SIDE * entry["accuracy"]
    text = (
        f"{name}: of {entry['rows']} answers with a probability of {entry['low']:.1f} to {entry['high']:.1f}, "
        f"{entry['accuracy']:.0%} are right; mean probability {entry['confidence']:.2f}"
    )
    return _Bar(MARGIN + x, width, MARGIN + SIDE - height, height, MARGIN + SIDE * (1 - entry["confidence"]), text)
