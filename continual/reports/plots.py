"""Figures of streams, comparisons and studies."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure

from continual.reports.comparison import average_accuracy_curve, final_scores
from continual.reports.report import Document
from continual.reports.stream_measures import ScoreMatrix

MAX_INCHES = 100.0  # of a side; matplotlib renders no larger figure
NUM_COLORS, MARKERS = 10, "osD^vPX*"  # markers differ, for print in black and white
DODGE_WIDTH = 0.6  # width that the strategies' marks share at a task
DARK_BELOW = 0.6  # scores below are on a dark cell of viridis, and take white text
MAX_LABEL_CHARS = 16  # characters of a line of a label under a group of bars
MIN_COLOR_RANGE = 0.05  # least gain of full colour: small differences look alike
DARK_GAIN = 0.65  # of the largest gain: beyond, a cell is dark
DARK, LIGHT = "#010101", "#fefefe"  # text on cells; pure black and white would follow the page's colour scheme


def heatmap(
    matrix: ScoreMatrix,
    tasks: Sequence[str],
    *,
    title: str,
    xlabel: str = "scored on",
    ylabel: str = "after learning",
    colorbar_label: str = "score",
) -> Figure:
    """Draw a T × T matrix of fractions, by default scores on each task after learning each task.

    Args:
        matrix: Fractions; cells of None stay blank.
        tasks: Names of the T rows and columns.
        title: Title of the figure.
        xlabel: What the columns are.
        ylabel: What the rows are.
        colorbar_label: What the fractions are.
    """
    size = min(max(4.0, 1.4 + 0.7 * len(tasks)), MAX_INCHES)
    figure = Figure(figsize=(size + 1.2, size), layout="constrained")
    axes = figure.add_subplot()
    cells = [_with_gaps(row) for row in matrix]
    image = axes.imshow(cells or [[float("nan")]], cmap="viridis", vmin=0.0, vmax=1.0)
    # Names are shown verbatim: a $ in one starts no formula.
    axes.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(len(tasks)), tasks, parse_math=False)
    axes.set_title(title, parse_math=False)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    for t, row in enumerate(matrix):
        for i, value in enumerate(row):
            if value is not None:
                color = "white" if value < DARK_BELOW else "black"
                axes.text(i, t, f"{value:.2f}", ha="center", va="center", color=color, fontsize=9)
    figure.colorbar(image, label=colorbar_label)
    return figure


def confusion_map(matrix: ScoreMatrix, tasks: Sequence[str]) -> Figure:
    """Draw the T × T shares of each task's test rows (a row) that were routed to each task (a column)."""
    return heatmap(
        matrix,
        tasks,
        title="where inputs were sent",
        xlabel="task chosen",
        ylabel="own task",
        colorbar_label="share of rows",
    )


def confusion_shares(pairs: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> ScoreMatrix:
    """Return the T × T shares of each task's rows that were routed to each task.

    Args:
        pairs: The `confused` pairs of a report.
        tasks: Names of the T tasks.

    Returns:
        Shares that sum to 1 in a row; None off the diagonal where no row was routed.
    """
    shares = {(pair["task"], pair["routed_to"]): pair["share"] for pair in pairs}
    misrouted = [[shares.get((task, target), 0.0) for target in tasks] for task in tasks]
    return [
        [1.0 - sum(row) if i == t else value or None for i, value in enumerate(row)] for t, row in enumerate(misrouted)
    ]


def comparison_figure(document: Document) -> Figure:
    """Draw the mean score of each strategy after each task, and its final score on each task."""
    strategies, tasks = document["strategies"], document["tasks"]
    figure = Figure(figsize=(min(max(9.0, 3.0 + 0.7 * len(tasks)), MAX_INCHES), 8.0), layout="constrained")
    above, below = figure.subplots(2, 1)
    for number, strategy in enumerate(strategies):
        style = {
            "color": f"C{number % NUM_COLORS}",
            "marker": MARKERS[number % len(MARKERS)],
            "label": strategy["strategy"],
        }
        curve, last = average_accuracy_curve(strategy), final_scores(strategy)
        above.plot(range(1, len(curve) + 1), _with_gaps(curve), linewidth=1.2, **style)
        offset = DODGE_WIDTH * ((number + 0.5) / len(strategies) - 0.5)  # equal scores do not hide one another
        below.plot([i + offset for i in range(len(tasks))], _with_gaps(map(last.get, tasks)), linestyle="none", **style)
    above.set(xlabel="tasks learned", ylabel="mean score on the tasks so far")
    above.set_xticks(range(1, len(tasks) + 1))
    below.set(ylabel="score at the end")
    below.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right", parse_math=False)
    if strategies:
        above.legend(ncols=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def gain_map(
    matrix: ScoreMatrix, *, row_names: Sequence[str], column_names: Sequence[str], title: str, labels: tuple[str, str]
) -> Figure:
    """Draw a matrix of gains and losses: white for none, blue for gains, red for losses.

    Args:
        matrix: Gains; cells of None stay blank.
        row_names: Names of the rows.
        column_names: Names of the columns.
        title: Title of the figure.
        labels: What the rows, and what the columns are.
    """
    width, height = (min(max(3.0, 1.4 + 0.62 * len(names)), MAX_INCHES) for names in (column_names, row_names))
    figure = Figure(figsize=(width + 1.0, height), layout="constrained")
    axes = figure.add_subplot()
    cells = [_with_gaps(row) for row in matrix]
    largest = max(abs(value) for row in [*matrix, [MIN_COLOR_RANGE]] for value in row if value is not None)
    # Cells as shapes, since an image of pixels blurs where a page is magnified.
    axes.pcolormesh(cells, cmap="RdBu", vmin=-largest, vmax=largest)
    axes.invert_yaxis()
    axes.set_xticks(
        [i + 0.5 for i in range(len(column_names))], column_names, rotation=45, ha="right", parse_math=False
    )
    axes.set_yticks([i + 0.5 for i in range(len(row_names))], row_names, parse_math=False)
    axes.set_title(title, parse_math=False)
    axes.set(ylabel=labels[0], xlabel=labels[1])
    for t, row in enumerate(matrix):
        for i, value in enumerate(row):
            if value is not None:
                color = LIGHT if abs(value) > DARK_GAIN * largest else DARK
                axes.text(i + 0.5, t + 0.5, f"{value:+.2f}", ha="center", va="center", color=color, fontsize=8)
    return figure


@dataclass(frozen=True)
class Line:
    """Points of a line, in order.

    Attributes:
        x: Positions on the axis across.
        y: Values.
        low: Lower ends of the band about the line; None without a band.
        high: Upper ends of the band.
    """

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def line_plot(
    lines: Mapping[str, Line],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    log_x: bool = False,
    baseline: float | None = None,
) -> Figure:
    """Draw lines, with their bands.

    Args:
        lines: Lines by name.
        title: Title of the figure.
        xlabel: What x is.
        ylabel: What y is.
        log_x: Whether x has a logarithmic axis.
        baseline: Value that all lines are compared with, drawn dashed.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    if baseline is not None:
        axes.axhline(baseline, color="black", linewidth=0.8, linestyle="dashed")
    for name, line in lines.items():
        (artist,) = axes.plot(line.x, line.y, marker="o", markersize=4, label=name)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=artist.get_color(), alpha=0.15, linewidth=0)
    if log_x:
        axes.set_xscale("log")
    axes.set_title(title, parse_math=False)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if lines:
        axes.legend(fontsize=8, frameon=False)
    return figure


def bar_plot(groups: Mapping[str, Mapping[str, float | None]], *, title: str, ylabel: str) -> Figure:
    """Draw groups of bars, of the same colour for the same name in each group.

    Args:
        groups: Values by name, by group; None draws no bar.
        title: Title of the figure.
        ylabel: What the values are.
    """
    names = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    figure = Figure(figsize=(min(2.5 + 1.6 * len(groups), MAX_INCHES), 4.2), layout="constrained")
    axes, width = figure.add_subplot(), 0.8 / max(len(names), 1)
    for number, name in enumerate(names):
        values = [(i, value) for i, bars in enumerate(groups.values()) if (value := bars.get(name)) is not None]
        positions = [i + width * (number - (len(names) - 1) / 2) for i, _ in values]
        axes.bar(positions, [value for _, value in values], width, label=name)
    axes.set_xticks(range(len(groups)), [fill(name, MAX_LABEL_CHARS) for name in groups], fontsize=8, parse_math=False)
    axes.set_title(title, parse_math=False)
    axes.set(ylabel=ylabel)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def dot_plot(groups: Mapping[str, Mapping[str, tuple[float, float | None]]], *, title: str, xlabel: str) -> Figure:
    """Draw a row for each name with a dot at its mean and a bar of one standard deviation to both sides.

    Args:
        groups: Mean and standard deviation by name, by group; each group has one colour. None draws no bar.
        title: Title of the figure.
        xlabel: What the values are.
    """
    names = [name for dots in groups.values() for name in dots]
    height = min(1.4 + 0.28 * (len(names) + len(groups)), MAX_INCHES)
    figure = Figure(figsize=(6.4, height), layout="constrained")
    axes = figure.add_subplot()
    rows: list[int] = []
    for group, dots in groups.items():
        first = rows[-1] + 2 if rows else 0  # an empty row between groups
        places = range(first, first + len(dots))
        rows += places
        means, deviations = [mean for mean, _ in dots.values()], [spread or 0.0 for _, spread in dots.values()]
        axes.errorbar(means, places, xerr=deviations, fmt="o", markersize=4, capsize=3, label=group)
    axes.set_yticks(rows, names, fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.grid(axis="x", linewidth=0.4, alpha=0.5)
    axes.set_title(title, parse_math=False)
    axes.set(xlabel=xlabel)
    if len(groups) > 1:
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _with_gaps(values: Iterable[float | None]) -> list[float]:
    """Return numbers as matplotlib takes them: NaN, a gap, for None."""
    return [float("nan") if value is None else value for value in values]
