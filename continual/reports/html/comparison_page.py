"""The page of a comparison: the document of `continual compare --json`, to be shown."""

from collections.abc import Iterator

from continual.reports.comparison import COST_LEGEND, MEASURE_LEGEND, MEASURE_PATHS, measure_values
from continual.reports.html.document import Section, Table, format_cell, page
from continual.reports.html.heatmap import heatmap_table, shared_color_scale
from continual.reports.plots import comparison_figure
from continual.reports.report import Document


def strategies_page(document: Document) -> str:
    """What a stream came to by several strategies, as a page of its own."""
    told, tasks = document["strategies"], len(document["tasks"])
    summary = (
        f"{tasks} task{'' if tasks == 1 else 's'} on backbone {document['backbone']}: the same rows, heads, epochs and "
        "test rows for every strategy."
    )
    if document["purged"]:
        summary += f" Left out, since they were purged: {', '.join(document['purged'])}."
    rows = tuple((one["strategy"], *measure_values(one)) for one in told)
    costs = tuple((one["strategy"], one["parameters"], one["bytes"], one["seconds"]) for one in told)
    formats = {"parameters": ",.0f", "bytes": ",.0f", "seconds": ",.0f"}
    sections = [
        Section("In short", table=Table(("strategy", *MEASURE_PATHS), rows), caption=MEASURE_LEGEND),
        Section("After each task", figure=comparison_figure(document), caption=_caption(document)),
        Section("What they take", table=Table(("strategy", *formats), costs, formats), caption=COST_LEGEND),
        *_matrices(document),
    ]
    return page(f"Stream {document['stream']}, compared", sections, summary=summary)


def _caption(document: Document) -> str:
    ends = (f"{one['strategy']} {format_cell(one['oracle']['acc'])}" for one in document["strategies"])
    return (
        "Above, the mean score on the tasks so far after each task, a line for each strategy; below, the score of each "
        f"task at the end. Mean at the end: {', '.join(ends)}."
    )


def _matrices(document: Document) -> Iterator[Section]:
    told = document["strategies"]
    scale = shared_color_scale(*(one["oracle"]["matrix"] for one in told))
    for one in told:
        said = ", ".join(f"{name} {value}" for name, value in one["settings"].items() if value is not None)
        caption = f"Score by {one['strategy']}, with the task known"
        heat = heatmap_table(
            one["oracle"]["matrix"], one["tasks"], scale=scale, caption=caption, corner="after learning"
        )
        yield Section(f"Scores: {one['strategy']}", said, html=heat)
