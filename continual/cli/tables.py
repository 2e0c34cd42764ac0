"""Tables for the terminal: listings, reports and comparisons."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from continual.cli.table_layout import Cell, TextTable, print_table, print_text
from continual.reports.comparison import COST_LEGEND, MEASURE_LEGEND, MEASURE_PATHS, measure_values
from continual.reports.report import MEASURES, Document, below_baseline, kept_start, serving_note, transfer_gain
from continual.reports.stream_measures import mean

SCORE_COLORS = ((0.9, "bold green"), (0.75, "green"), (0.6, "yellow"))  # least score, style
COSTS = ("parameters", "kB", "s")  # of a strategy
# Columns that only `--json` shows: other columns imply them, or only scripts need them.
HIDDEN_COLUMNS = ("kind", "version", "mlflow_run", "bytes", "created_at", "champion_created_at", "notes", "warnings")


def listing(rows: Sequence[Mapping[str, Any]], *, hidden: Collection[str] = ()) -> TextTable:
    """Return a table of the rows of a `--json` listing.

    Args:
        rows: The rows, at least one, all with the same keys.
        hidden: Columns to leave out beside `HIDDEN_COLUMNS`.
    """
    hidden = {*HIDDEN_COLUMNS, *hidden, *(("task",) if all(row.get("delta") for row in rows) else ())}
    names = [name for name in rows[0] if name not in hidden]
    texts = [[format_value(row[name], name) for name in names] for row in rows]
    return TextTable([name.replace("_", " ") for name in names], texts, [_is_number(rows[0][name]) for name in names])


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
        print_table(console, table)
    for task in document["per_task"]:
        if note := serving_note(task):
            print_text(console, note)
    for pair in document["routed"]["confused"]:
        if pair["advice"]:
            print_text(console, f"{pair['share']:.0%}: {pair['advice']}", style="yellow")
    for task in document["per_task"]:
        for warning in task["warnings"]:
            print_text(console, f"{task['task']}: {warning}", style="yellow")
        for note in filter(None, (kept_start(task), below_baseline(task))):
            print_text(console, f"{task['task']}: {note}", style="yellow")
    for task in document["unfinished"]:
        print_text(console, f"{task['task']} is not learned: {task['error'] or task['state']}", style="red")


def print_comparison(console: Console, document: Document) -> None:
    """Print two tables with a row per strategy: oracle measures, then routed measures and costs."""
    for warning in document["warnings"]:
        print_text(console, warning, style="yellow")
    if document["purged"]:
        print_text(console, f"Left out, since they were purged: {', '.join(document['purged'])}", style="yellow")
    oracle = [heading for heading, (mode, _) in MEASURE_PATHS.items() if mode == "oracle"]
    routed = [heading for heading in MEASURE_PATHS if heading not in oracle]
    rows = list(map(_strategy_cells, document["strategies"]))
    unfinished = "" if all(strategy["finished"] for strategy in document["strategies"]) else " · *: not finished"
    console.print("Scores, when the task is known", style="bold")
    print_table(console, _strategy_table(rows, oracle))
    console.print("When the router chooses it, and costs", style="bold")
    legend = f"{MEASURE_LEGEND} · {COST_LEGEND}{unfinished}"
    print_table(console, _strategy_table(rows, [*routed, *COSTS], caption=legend))


def _strategy_table(rows: Sequence[Mapping[str, str]], columns: Sequence[str], *, caption: str = "") -> TextTable:
    cells = [[row["strategy"], *(row[column] for column in columns)] for row in rows]
    return TextTable(["strategy", *columns], cells, [False, *[True] * len(columns)], caption)


def _strategy_cells(strategy: Document) -> dict[str, str]:
    """Return the cells of a strategy by heading."""
    values = zip(MEASURE_PATHS, measure_values(strategy), strict=True)
    counts = (strategy["parameters"], strategy["bytes"] and strategy["bytes"] / 1000, strategy["seconds"])
    return {
        "strategy": strategy["strategy"] if strategy["finished"] else f"{strategy['strategy']} *",
        **{heading: format_value(value) for heading, value in values},
        **{heading: _count(count) for heading, count in zip(COSTS, counts, strict=True)},
    }


def _count(value: float | None) -> str:
    return format_value(None) if value is None else f"{value:,.0f}"


def _matrix(matrix: Sequence[Sequence[float | None]], tasks: Sequence[str]) -> TextTable:
    numbers = [str(number) for number in range(1, len(tasks) + 1)]
    rows: list[list[Cell]] = [
        [f"{number} {name}", *map(_colored, row)] for number, name, row in zip(numbers, tasks, matrix, strict=True)
    ]
    return TextTable(["after learning", *numbers], rows, [False, *[True] * len(tasks)])


def _measures(document: Document) -> TextTable:
    modes = ("oracle", "routed")
    rows = [[label, *(format_value(document[mode].get(key)) for mode in modes)] for key, label in MEASURES.items()]
    gains = [gain for task in document["per_task"] if (gain := transfer_gain(task)) is not None]
    rows.append(["mean transfer gain over scratch", format_value(mean(gains)), "–"])
    return TextTable(["", *modes], rows, [False, True, True])


def _costs(tasks: Sequence[Mapping[str, Any]]) -> TextTable:
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
    shares = [task["share"] for task in tasks]
    share_range = f"a delta is {min(shares):.2%} to {max(shares):.2%} of the backbone · " if shares else ""
    caption = (
        f"{share_range}frozen: the best without any training · start: the delta whose values were copied · "
        "gain: over training from scratch, where that was trained too"
    )
    return TextTable(headings, rows, [heading not in ("delta", "start") for heading in headings], caption)


def _colored(value: float | None) -> Text:
    if value is None:
        return Text("–", style="dim")
    color = next((style for least, style in SCORE_COLORS if value >= least), "red")
    return Text(f"{value:.3f}", style=color)


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
