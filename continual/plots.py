"""Pictures of a stream."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from continual.forgetting import Matrix
from continual.report import Document
from continual.strategies import ends, seen_so_far

LARGEST = 100.0  # inches of a side, what a picture can hold
COLOURS, MARKS = 10, "osD^vPX*"  # told apart in black and white too
ASIDE = 0.6  # of the place of a task, what its marks share
INK_ON_DARK = 0.6  # scores below stand on a dark cell of the colour map


def heat_map(
    matrix: Matrix,
    tasks: Sequence[str],
    *,
    title: str,
    across: str = "scored on",
    down: str = "after learning",
    shade: str = "score",
) -> Figure:
    """A matrix of fractions: by default a row for each task learned, a column for each task scored.

    What has no value stays blank.
    """
    size = min(max(4.0, 1.4 + 0.7 * len(tasks)), LARGEST)
    figure = Figure(figsize=(size + 1.2, size), layout="constrained")
    axes = figure.add_subplot()
    cells = [_drawn(row) for row in matrix]
    image = axes.imshow(cells or [[float("nan")]], cmap="viridis", vmin=0.0, vmax=1.0)
    # Names are shown as they are: a $ in one begins no formula.
    axes.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(len(tasks)), tasks, parse_math=False)
    axes.set_title(title, parse_math=False)
    axes.set(xlabel=across, ylabel=down)
    for t, row in enumerate(matrix):
        for i, value in enumerate(row):
            if value is not None:
                ink = "white" if value < INK_ON_DARK else "black"
                axes.text(i, t, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=9)
    figure.colorbar(image, label=shade)
    return figure


def confusion_map(matrix: Matrix, tasks: Sequence[str]) -> Figure:
    """Where the test rows of each task were sent."""
    return heat_map(
        matrix, tasks, title="where inputs were sent", across="task chosen", down="own task", shade="share of rows"
    )


def confused(pairs: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> Matrix:
    """The shares of each task's rows that went to each task, from the pairs of a report."""
    shares = {(pair["task"], pair["routed_to"]): pair["share"] for pair in pairs}
    astray = [[shares.get((own, other), 0.0) for other in tasks] for own in tasks]
    return [
        [1.0 - sum(row) if i == t else value or None for i, value in enumerate(row)] for t, row in enumerate(astray)
    ]


def compared(document: Document) -> Figure:
    """The strategies of a comparison: the mean score on the tasks so far after each task, and each last score."""
    told, tasks = document["strategies"], document["tasks"]
    figure = Figure(figsize=(min(max(9.0, 3.0 + 0.7 * len(tasks)), LARGEST), 8.0), layout="constrained")
    above, below = figure.subplots(2, 1)
    for place, one in enumerate(told):
        look = {"color": f"C{place % COLOURS}", "marker": MARKS[place % len(MARKS)], "label": one["strategy"]}
        curve, last = seen_so_far(one), ends(one)
        above.plot(range(1, len(curve) + 1), _drawn(curve), linewidth=1.2, **look)
        aside = ASIDE * ((place + 0.5) / len(told) - 0.5)  # so that equal scores do not hide one another
        below.plot([n + aside for n in range(len(tasks))], _drawn(map(last.get, tasks)), linestyle="none", **look)
    above.set(xlabel="tasks learned", ylabel="mean score on the tasks so far")
    above.set_xticks(range(1, len(tasks) + 1))
    below.set(ylabel="score at the end")
    below.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right", parse_math=False)
    if told:
        above.legend(ncols=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _drawn(values: Iterable[float | None]) -> list[float]:
    """Numbers as matplotlib takes them: what is not known leaves a gap."""
    return [float("nan") if value is None else value for value in values]
