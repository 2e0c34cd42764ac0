"""Render the document of `continual compare --json` as a page."""

from collections.abc import Iterator

from continual.reports.comparison import COST_LEGEND, MEASURE_LEGEND, MEASURE_PATHS, measure_values
from continual.reports.html.document import Section, Table, format_cell, page
from continual.reports.html.heatmap import heatmap_table, shared_color_scale
from continual.reports.plots import comparison_figure
from continual.reports.report import Document


def strategies_page(document: Document) -> str:
    """Return the HTML page of a comparison: measures, figures, costs and score matrices of every strategy."""
    strategies, tasks = document["strategies"], len(document["tasks"])
    summary = (
        f"{tasks} task{'' if tasks == 1 else 's'} on backbone {document['backbone']}: the same rows, heads, epochs and "
        "test rows for every strategy."
    )
    if document["purged"]:
        summary += f" Left out, since they were purged: {', '.join(document['purged'])}."
    rows = tuple((strategy["strategy"], *measure_values(strategy)) for strategy in strategies)
    keys = ("strategy", "parameters", "bytes", "seconds")
    costs = tuple(tuple(strategy[key] for key in keys) for strategy in strategies)
    formats = {"parameters": ",.0f", "bytes": ",.0f", "seconds": ",.0f"}
    sections = [
        Section("In short", table=Table(("strategy", *MEASURE_PATHS), rows), caption=MEASURE_LEGEND),
        *_warnings(document),
        Section("After each task", figure=comparison_figure(document), caption=_caption(document)),
        Section("What they take", table=Table(("strategy", *formats), costs, formats), caption=COST_LEGEND),
        *_matrices(document),
    ]
    return page(f"Stream {document['stream']}, compared", sections, summary=summary)


def _warnings(document: Document) -> Iterator[Section]:
    if document["warnings"]:
        yield Section("Not improved by training", table=Table(("warning",), tuple((w,) for w in document["warnings"])))


def _caption(document: Document) -> str:
    final = (f"{strategy['strategy']} {format_cell(strategy['oracle']['acc'])}" for strategy in document["strategies"])
    return (
        "Above, the mean score on the tasks so far after each task, a line for each strategy; below, the score of each "
        f"task at the end. Mean at the end: {', '.join(final)}."
    )


def _matrices(document: Document) -> Iterator[Section]:
    strategies = document["strategies"]
    scale = shared_color_scale(*(strategy["oracle"]["matrix"] for strategy in strategies))
    for strategy in strategies:
        name, matrix = strategy["strategy"], strategy["oracle"]["matrix"]
        settings = ", ".join(f"{key} {value}" for key, value in strategy["settings"].items() if value is not None)
        caption = f"Score by {name}, with the task known"
        heat = heatmap_table(matrix, strategy["tasks"], scale=scale, caption=caption, corner="after learning")
        yield Section(f"Scores: {name}", settings, html=heat)
