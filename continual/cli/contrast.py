"""What people read in the terminal of a comparison of strategies; apart, as it needs what learning needs."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from continual.cli.show import empty_table, text_of
from continual.report import Document
from continual.strategies import COSTS_EXPLAINED, EXPLAINED, MEASURED, measured
from continual.visible import visible


def show_comparison(console: Console, document: Document) -> None:
    """A row for each strategy: its measures with the task known, then routed ones and what it takes."""
    told = document["strategies"]
    if document["purged"]:
        gone = visible(f"Left out, since they were purged: {', '.join(document['purged'])}")
        console.print(gone, style="yellow", markup=False)
    known = [heading for heading, (mode, _) in MEASURED.items() if mode == "oracle"]
    routed = [heading for heading in MEASURED if heading not in known]
    scores, rest = (_listed("strategy", columns) for columns in (known, [*routed, "parameters", "kB", "s"]))
    for one in told:
        name = one["strategy"] if one["finished"] else f"{one['strategy']} *"
        values = {heading: text_of(value) for heading, value in zip(MEASURED, measured(one), strict=True)}
        counts = (one["parameters"], one["bytes"] and one["bytes"] / 1000, one["seconds"])
        scores.add_row(name, *(values[heading] for heading in known))
        rest.add_row(name, *(values[heading] for heading in routed), *(_count(count) for count in counts))
    unfinished = "" if all(one["finished"] for one in told) else " · *: not finished"
    rest.caption = f"{EXPLAINED} · {COSTS_EXPLAINED}{unfinished}"
    for title, table in (("Scores, when the task is known", scores), ("When the router chooses it, and costs", rest)):
        console.print(title, style="bold")
        console.print(table)


def _listed(first: str, columns: Sequence[str]) -> Table:
    """A table of names with numbers behind them."""
    table = empty_table()
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _count(value: float | None) -> str:
    return text_of(None) if value is None else f"{value:,.0f}"
