"""Matrices of fractions as tables whose cells are coloured: the number is in each, so colour alone says nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from continual.reports.html.document import render
from continual.reports.stream_measures import ScoreMatrix

LEVELS = 10  # the last of the colours in page.css
STEPS = 4  # of the legend, from end to end
MANY = 20  # tasks: more are set in smaller type
LEAST_RANGE = 0.1  # of a scale: what differs by less looks alike


@dataclass(frozen=True)
class ColorScale:
    """From which value to which the colours go."""

    low: float
    high: float

    def level(self, value: float) -> int:
        """The colour of a value, 0 to LEVELS; what lies outside has that of the nearer end."""
        share = (value - self.low) / (self.high - self.low)
        return round(LEVELS * min(max(share, 0.0), 1.0))


@dataclass(frozen=True)
class _Cell:
    text: str
    level: int


def shared_color_scale(*matrices: ScoreMatrix) -> ColorScale:
    """One scale for matrices that are to be compared: from their least value to their greatest.

    >>> scale_of([[0.5, None], [0.9, 0.75]])
    Scale(low=0.5, high=0.9)
    """
    found = [value for matrix in matrices for row in matrix for value in row if value is not None] or [1.0]
    high = max(found)
    return ColorScale(min(*found, high - LEAST_RANGE), high)


def heatmap_table(
    matrix: ScoreMatrix, tasks: Sequence[str], *, scale: ColorScale, caption: str, corner: str, spec: str = ".2f"
) -> Markup:
    """A matrix with a row and a column for each task; columns go by number, and what has no value stays blank.

    corner: what the rows are · spec: the format of a number.
    """
    rows = [[None if value is None else _cell(value, scale, spec) for value in row] for row in matrix]
    legend = [_cell(scale.low + (scale.high - scale.low) * part / STEPS, scale, spec) for part in range(STEPS + 1)]
    return render("heat.html", rows=rows, tasks=tasks, legend=legend, caption=caption, corner=corner, many=MANY)


def _cell(value: float, scale: ColorScale, spec: str) -> _Cell:
    return _Cell(format(value, spec), scale.level(value))
