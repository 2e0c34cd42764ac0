"""Pictures of streams and studies."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure

from continual.reports.comparison import average_accuracy_curve, final_scores
from continual.reports.report import Document
from continual.reports.stream_measures import ScoreMatrix

LARGEST = 100.0  # inches of a side, what a picture can hold
COLOURS, MARKERS = 10, "osD^vPX*"  # told apart in black and white too
DODGE_WIDTH = 0.6  # of the place of a task, what its marks share
INK_ON_DARK = 0.6  # scores below stand on a dark cell of the colour map
BROAD = 16  # signs of a line under a group of bars
LEAST_GAIN = 0.05  # the colours reach as far as the largest gain, but no less: what differs by little looks alike
DARK_GAIN = 0.65  # of the largest gain: beyond, the colour of a cell is dark
DARK, LIGHT = "#010101", "#fefefe"  # ink of cells, whose colours are the same on a light page and on a dark one


def heatmap(
    matrix: ScoreMatrix,
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


def confusion_map(matrix: ScoreMatrix, tasks: Sequence[str]) -> Figure:
    """Where the test rows of each task were sent."""
    return heatmap(
        matrix, tasks, title="where inputs were sent", across="task chosen", down="own task", shade="share of rows"
    )


def confusion_shares(pairs: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> ScoreMatrix:
    """The shares of each task's rows that went to each task, from the pairs of a report."""
    shares = {(pair["task"], pair["routed_to"]): pair["share"] for pair in pairs}
    astray = [[shares.get((own, other), 0.0) for other in tasks] for own in tasks]
    return [
        [1.0 - sum(row) if i == t else value or None for i, value in enumerate(row)] for t, row in enumerate(astray)
    ]


def comparison_figure(document: Document) -> Figure:
    """The strategies of a comparison: the mean score on the tasks so far after each task, and each last score."""
    told, tasks = document["strategies"], document["tasks"]
    figure = Figure(figsize=(min(max(9.0, 3.0 + 0.7 * len(tasks)), LARGEST), 8.0), layout="constrained")
    above, below = figure.subplots(2, 1)
    for place, one in enumerate(told):
        look = {"color": f"C{place % COLOURS}", "marker": MARKERS[place % len(MARKERS)], "label": one["strategy"]}
        curve, last = average_accuracy_curve(one), final_scores(one)
        above.plot(range(1, len(curve) + 1), _drawn(curve), linewidth=1.2, **look)
        aside = DODGE_WIDTH * ((place + 0.5) / len(told) - 0.5)  # so that equal scores do not hide one another
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


def gain_map(
    matrix: ScoreMatrix, *, down: Sequence[str], across: Sequence[str], title: str, labels: tuple[str, str]
) -> Figure:
    """A matrix of gains and losses: white for none, blue for gains, red for losses; what has no value stays blank.

    labels: what the rows and what the columns are.
    """
    width, height = (min(max(3.0, 1.4 + 0.62 * len(names)), LARGEST) for names in (across, down))
    figure = Figure(figsize=(width + 1.0, height), layout="constrained")
    axes = figure.add_subplot()
    cells = [_drawn(row) for row in matrix]
    most = max(abs(value) for row in [*matrix, [LEAST_GAIN]] for value in row if value is not None)
    # Cells as shapes, since a picture of pixels blurs where a page is magnified.
    axes.pcolormesh(cells, cmap="RdBu", vmin=-most, vmax=most)
    axes.invert_yaxis()
    axes.set_xticks([i + 0.5 for i in range(len(across))], across, rotation=45, ha="right", parse_math=False)
    axes.set_yticks([i + 0.5 for i in range(len(down))], down, parse_math=False)
    axes.set_title(title, parse_math=False)
    axes.set(ylabel=labels[0], xlabel=labels[1])
    for t, row in enumerate(matrix):
        for i, value in enumerate(row):
            if value is not None:
                ink = LIGHT if abs(value) > DARK_GAIN * most else DARK
                axes.text(i + 0.5, t + 0.5, f"{value:+.2f}", ha="center", va="center", color=ink, fontsize=8)
    return figure


@dataclass(frozen=True)
class Line:
    """Points in order, and where they are known the ends of the band about them."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def line_plot(
    lines: Mapping[str, Line],
    *,
    title: str,
    across: str,
    up: str,
    logarithmic: bool = False,
    level: float | None = None,
) -> Figure:
    """Lines by name. logarithmic: the axis across · level: what all are compared with, a line of its own."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    if level is not None:
        axes.axhline(level, color="black", linewidth=0.8, linestyle="dashed")
    for name, line in lines.items():
        (drawn,) = axes.plot(line.x, line.y, marker="o", markersize=4, label=name)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=drawn.get_color(), alpha=0.15, linewidth=0)
    if logarithmic:
        axes.set_xscale("log")
    axes.set_title(title, parse_math=False)
    axes.set(xlabel=across, ylabel=up)
    if lines:
        axes.legend(fontsize=8, frameon=False)
    return figure


def bar_plot(groups: Mapping[str, Mapping[str, float | None]], *, title: str, up: str) -> Figure:
    """Bars of every group side by side, of the same colour in each; what has no value has no bar."""
    names = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    figure = Figure(figsize=(min(2.5 + 1.6 * len(groups), LARGEST), 4.2), layout="constrained")
    axes, width = figure.add_subplot(), 0.8 / max(len(names), 1)
    for number, name in enumerate(names):
        there = [(i, value) for i, bars in enumerate(groups.values()) if (value := bars.get(name)) is not None]
        places = [i + width * (number - (len(names) - 1) / 2) for i, _ in there]
        axes.bar(places, [value for _, value in there], width, label=name)
    axes.set_xticks(range(len(groups)), [fill(name, BROAD) for name in groups], fontsize=8, parse_math=False)
    axes.set_title(title, parse_math=False)
    axes.set(ylabel=up)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
