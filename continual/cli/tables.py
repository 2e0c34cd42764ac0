"""Tables for the terminal: listings, reports and comparisons that fit in eighty columns."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from continual.escaping import escape_control_characters
from continual.reports.comparison import COST_LEGEND, MEASURE_LEGEND, MEASURE_PATHS, measure_values
from continual.reports.report import MEASURES, Document, kept_start, serving_note, transfer_gain
from continual.reports.stream_measures import mean

SCORE_COLORS = ((0.9, "bold green"), (0.75, "green"), (0.6, "yellow"))  # least score, style
# Columns that only `--json` shows: other columns imply them, or only scripts need them.
HIDDEN_COLUMNS = ("kind", "version", "mlflow_run", "bytes", "created_at", "notes", "warnings")


def listing(rows: Sequence[Mapping[str, Any]], *, hidden: Collection[str] = ()) -> Table:
    """Return a table of the rows of a `--json` listing.

    Args:
        rows: The rows, at least one, all with the same keys.
        hidden: Columns to leave out beside `HIDDEN_COLUMNS`.
    """
    hidden = {*HIDDEN_COLUMNS, *hidden, *(("task",) if all(row.get("delta") for row in rows) else ())}
    names = [name for name in rows[0] if name not in hidden]
    texts = [[format_value(row[name], name) for name in names] for row in rows]
    return table_of([name.replace("_", " ") for name in names], texts, numeric=[_is_number(rows[0][n]) for n in names])


def table_of(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Sequence[bool]) -> Table:
    """Return a table of plain texts, with markup and control characters escaped.

    Args:
        columns: The headings.
        rows: The cells of each row.
        numeric: For each column, whether to align it to the right.
    """
    table = _table()
    for column, right in zip(columns, numeric, strict=True):
        table.add_column(
            escape(escape_control_characters(column)), justify="right" if right else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(escape(escape_control_characters(cell)) for cell in row))
    return table


def print_report(console: Console, document: Document) -> None:
    """Print a stream's report: score matrices, measures, and the cost of each task."""
    tasks = document["tasks"]
    for title, table in (
        ("Score of each task, when the task is known", _matrix(document["oracle"]["matrix"], tasks)),
        ("Score of each task, when the router chooses it", _matrix(document["routed"]["matrix"], tasks)),
        ("Measures", _measures(document)),
        ("Tasks", _costs(document["per_task"])),
    ):
        console.print(title, style="bold")
        console.print(table)
    for task in document["per_task"]:
        if note := serving_note(task):
            console.print(escape_control_characters(note), markup=False)
    for pair in document["routed"]["confused"]:
        if pair["advice"]:
            console.print(
                escape_control_characters(f"{pair['share']:.0%}: {pair['advice']}"), style="yellow", markup=False
            )
    for task in document["per_task"]:
        for warning in task["warnings"]:
            console.print(escape_control_characters(f"{task['task']}: {warning}"), style="yellow", markup=False)
        if note := kept_start(task):
            console.print(escape_control_characters(f"{task['task']}: {note}"), style="yellow", markup=False)
    for task in document["unfinished"]:
        message = escape_control_characters(f"{task['task']} is not learned: {task['error'] or task['state']}")
        console.print(message, style="red", markup=False)


def print_comparison(console: Console, document: Document) -> None:
    """Print two tables with a row per strategy: oracle measures, then routed measures and costs."""
    strategies = document["strategies"]
    for warning in document["warnings"]:
        console.print(escape_control_characters(warning), style="yellow", markup=False)
    if document["purged"]:
        message = escape_control_characters(f"Left out, since they were purged: {', '.join(document['purged'])}")
        console.print(message, style="yellow", markup=False)
    oracle = [heading for heading, (mode, _) in MEASURE_PATHS.items() if mode == "oracle"]
    routed = [heading for heading in MEASURE_PATHS if heading not in oracle]
    scores, costs = (_strategy_table(columns) for columns in (oracle, [*routed, "parameters", "kB", "s"]))
    for strategy in strategies:
        name = strategy["strategy"] if strategy["finished"] else f"{strategy['strategy']} *"
        values = {
            heading: format_value(value) for heading, value in zip(MEASURE_PATHS, measure_values(strategy), strict=True)
        }
        counts = (strategy["parameters"], strategy["bytes"] and strategy["bytes"] / 1000, strategy["seconds"])
        scores.add_row(name, *(values[heading] for heading in oracle))
        costs.add_row(name, *(values[heading] for heading in routed), *(_count(count) for count in counts))
    unfinished = "" if all(strategy["finished"] for strategy in strategies) else " · *: not finished"
    costs.caption = f"{MEASURE_LEGEND} · {COST_LEGEND}{unfinished}"
    for title, table in (("Scores, when the task is known", scores), ("When the router chooses it, and costs", costs)):
        console.print(title, style="bold")
        console.print(table)


def _strategy_table(columns: Sequence[str]) -> Table:
    table = _table()
    table.add_column("strategy", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _count(value: float | None) -> str:
    return format_value(None) if value is None else f"{value:,.0f}"


def _matrix(matrix: Sequence[Sequence[float | None]], tasks: Sequence[str]) -> Table:
    table = _table()
    table.add_column("after learning", no_wrap=True)
    for number in range(1, len(tasks) + 1):
        table.add_column(str(number), justify="right")
    for number, (name, row) in enumerate(zip(tasks, matrix, strict=True), start=1):
        table.add_row(escape(escape_control_characters(f"{number} {name}")), *(_colored(value) for value in row))
    return table


def _measures(document: Document) -> Table:
    table = _table()
    table.add_column("")
    for mode in ("oracle", "routed"):
        table.add_column(mode, justify="right")
    for key, label in MEASURES.items():
        table.add_row(label, *(format_value(document[mode].get(key)) for mode in ("oracle", "routed")))
    gains = [gain for task in document["per_task"] if (gain := transfer_gain(task)) is not None]
    table.add_row("mean transfer gain over scratch", format_value(mean(gains)), "–")
    return table


def _costs(tasks: Sequence[Mapping[str, Any]]) -> Table:
    headings = ("delta", "score", "95 % interval", "frozen", "start", "gain", "parameters", "kB", "s")
    rows = [
        (
            task["delta"],
            format_value(task["score"]),
            f"{format_value(task['score_low'])}–{format_value(task['score_high'])}",
            format_value(task["frozen_score"]),
            ", ".join(parent["delta"] for parent in task["parents"] if parent["weight"]) or "scratch",
            format_value(transfer_gain(task)),
            f"{task['parameters']:,}",
            f"{task['bytes'] / 1000:,.0f}",
            f"{task['seconds']:.0f}",
        )
        for task in tasks
    ]
    table = table_of(headings, rows, numeric=[heading not in ("delta", "start") for heading in headings])
    shares = [task["share"] for task in tasks]
    share_range = f"a delta is {min(shares):.2%} to {max(shares):.2%} of the backbone · " if shares else ""
    table.caption = (
        f"{share_range}frozen: the best without any training · start: the delta whose values were copied · "
        "gain: over training from scratch, where that was trained too"
    )
    return table


def _table() -> Table:
    return Table(caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _colored(value: float | None) -> str:
    if value is None:
        return "[dim]–[/]"
    color = next((style for least, style in SCORE_COLORS if value >= least), "red")
    return f"[{color}]{value:.3f}[/]"


def format_value(value: Any, column: str = "") -> str:
    """Format a value as a cell of a listing shows it."""
    if value is None:
        return "–"
    if column == "share":
        return f"{value:.2%}"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list):
        return ", ".join(map(format_value, value))
    if isinstance(value, Mapping):
        return " ".join(map(format_value, value.values()))
    return str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
