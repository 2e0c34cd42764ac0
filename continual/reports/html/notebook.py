"""Render reports, learners and answers as HTML fragments, which Jupyter shows in place of a `repr`."""

from collections.abc import Mapping, Sequence
from typing import Any

from continual.reports.comparison import MEASURE_LEGEND, MEASURE_PATHS, measure_values
from continual.reports.html.document import Section, Table, render
from continual.reports.report import MEASURES, Document

MAX_ROWS = 100  # of a table
MAX_CHARS = 200  # of a text
TASK_COLUMNS = ("task", "method", "score", "score_low", "score_high", "frozen_score", "parameters", "share", "seconds")
SERVING_COLUMNS = ("task", "delta", "method", "score", "parameters", "bytes")
ANSWER_COLUMNS = ("text", "task", "label", "score", "confidence", "delta", "error")
FORMATS = {"share": ".2%", "seconds": ",.1f"}


def stream_fragment(document: Document) -> str:
    """Return the measures and the tasks of a stream's report."""
    oracle, routed = document["oracle"], document["routed"]
    measures = tuple((label, oracle.get(key), routed.get(key)) for key, label in MEASURES.items())
    lines = [f"{len(document['tasks'])} of {_planned(document)} tasks learned on backbone {document['backbone']}"]
    lines += [f"{task['task']} is not learned: {task['error'] or task['state']}" for task in document["unfinished"]]
    sections = [
        Section("Measures", table=Table(("measure", "oracle", "routed"), measures)),
        _rows_section("Tasks", document["per_task"], TASK_COLUMNS),
    ]
    return _fragment(f"Stream {document['stream']}", sections, summary="\n".join(lines))


def comparison_fragment(document: Document) -> str:
    """Return the measures of every strategy of a comparison."""
    rows = tuple((strategy["strategy"], *measure_values(strategy)) for strategy in document["strategies"])
    failed = "".join(f"\n{failure['strategy']} failed: {failure['error']}" for failure in document.get("failed", ()))
    sections = [Section("Strategies", table=Table(("strategy", *MEASURE_PATHS), rows))]
    title = f"Stream {document['stream']}, compared on backbone {document['backbone']}"
    return _fragment(title, sections, summary=MEASURE_LEGEND + failed)


def learner_fragment(backbone: str, registry: str, serving: Sequence[Mapping[str, Any]]) -> str:
    """Return what a learner serves.

    Args:
        backbone: A description of the backbone.
        registry: A description of the registry, without secrets.
        serving: Rows of `Registry.deltas`, one for each serving delta.
    """
    return _fragment(
        "Learner", [_rows_section("Tasks served", serving, SERVING_COLUMNS)], summary=f"{backbone}\n{registry}"
    )


def answers_fragment(answers: Sequence[Mapping[str, Any]]) -> str:
    """Return answers as a table, an input in each row; `answers` are rows as of `Prediction.to_json`."""
    return _fragment(f"{len(answers):,} predictions", [_rows_section("Answers", answers, ANSWER_COLUMNS)])


def _fragment(title: str, sections: Sequence[Section], *, summary: str = "") -> str:
    return str(render("fragment.html", title=title, summary=summary, sections=sections))


def _rows_section(title: str, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Section:
    """Return the first rows as a table, with a title that says how many are left out."""
    cells = tuple(tuple(_shorten(row[key]) for key in keys) for row in rows[:MAX_ROWS])
    columns = tuple(key.replace("_", " ") for key in keys)
    shown = f"{title}: the first {MAX_ROWS} of {len(rows):,}" if len(rows) > MAX_ROWS else title
    return Section(shown, table=Table(columns, cells, FORMATS))


def _shorten(cell: Any) -> Any:
    """Return a cell with a pair of texts or a conversation joined, and a long text cut."""
    parts = cell if isinstance(cell, list | tuple) else ()
    text = " · ".join(part["content"] if isinstance(part, Mapping) else part for part in parts) if parts else cell
    return f"{text[:MAX_CHARS]}…" if isinstance(text, str) and len(text) > MAX_CHARS else text


def _planned(document: Document) -> int:
    return len(document["tasks"]) + len(document["unfinished"])
