"""Pictures of a stream."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from continual.forgetting import Matrix

LARGEST = 100.0  # inches of a side, what a picture can hold
INK_ON_DARK = 0.6  # scores below stand on a dark cell of the colour map


def heat_map(matrix: Matrix, tasks: Sequence[str], *, title: str) -> Figure:
    """A score matrix: a row for each task learned, a column for each task scored; what was not scored stays blank."""
    size = min(max(4.0, 1.4 + 0.7 * len(tasks)), LARGEST)
    figure = Figure(figsize=(size + 1.2, size), layout="constrained")
    axes = figure.add_subplot()
    cells = [[float("nan") if value is None else value for value in row] for row in matrix]
    image = axes.imshow(cells or [[float("nan")]], cmap="viridis", vmin=0.0, vmax=1.0)
    # Names are shown as they are: a $ in one begins no formula.
    axes.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(len(tasks)), tasks, parse_math=False)
    axes.set_title(title, parse_math=False)
    axes.set(xlabel="scored on", ylabel="after learning")
    for t, row in enumerate(matrix):
        for i, value in enumerate(row):
            if value is not None:
                ink = "white" if value < INK_ON_DARK else "black"
                axes.text(i, t, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=9)
    figure.colorbar(image, label="score")
    return figure
