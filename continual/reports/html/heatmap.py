"""Render matrices of fractions as tables of coloured cells; every cell also shows its number."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from continual.reports.html.document import render
from continual.reports.stream_measures import ScoreMatrix

MAX_LEVEL = 10  # of the colours in page.css, from 0
LEGEND_STEPS = 4
DENSE_ABOVE = 20  # tasks; tables of more have smaller type
MIN_RANGE = 0.1  # of a scale: smaller differences look alike


@dataclass(frozen=True)
class ColorScale:
    """A linear scale of colours from `low` to `high`."""

    low: float
    high: float

    def level(self, value: float) -> int:
        """Return the colour level of a value, 0 to MAX_LEVEL, clipped at both ends."""
        share = (value - self.low) / (self.high - self.low)
        return round(MAX_LEVEL * min(max(share, 0.0), 1.0))


@dataclass(frozen=True)
class _Cell:
    text: str
    level: int


def shared_color_scale(*matrices: ScoreMatrix) -> ColorScale:
    """Return one scale for several matrices, from their lowest to their highest value.

    >>> shared_color_scale([[0.5, None], [0.9, 0.75]])
    ColorScale(low=0.5, high=0.9)
    """
    values = [value for matrix in matrices for row in matrix for value in row if value is not None] or [1.0]
    high = max(values)
    return ColorScale(min(*values, high - MIN_RANGE), high)


def heatmap_table(
    matrix: ScoreMatrix, tasks: Sequence[str], *, scale: ColorScale, caption: str, corner: str, spec: str = ".2f"
) -> Markup:
    """Render a T × T matrix with a row and a numbered column for each task.

    Args:
        matrix: Values; cells of None stay blank.
        tasks: Names of the T tasks.
        scale: Colours of the values.
        caption: Caption of the table.
        corner: Heading of the first column: what the rows are.
        spec: Format of a value.
    """
    rows = [[None if value is None else _cell(value, scale, spec) for value in row] for row in matrix]
    legend = [
        _cell(scale.low + (scale.high - scale.low) * part / LEGEND_STEPS, scale, spec)
        for part in range(LEGEND_STEPS + 1)
    ]
    return render("heat.html", rows=rows, tasks=tasks, legend=legend, caption=caption, corner=corner, many=DENSE_ABOVE)


def _cell(value: float, scale: ColorScale, spec: str) -> _Cell:
    return _Cell(format(value, spec), scale.level(value))
