"""Learning curves as inline SVG, a small panel for each task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from continual.reports.html.document import render

WIDTH, HEIGHT, MARGIN = 160.0, 64.0, 6.0  # of a panel, in units of its view box
NO_EPOCHS: Mapping[str, int] = {}
MIN_SPAN = 0.02  # of scores: smaller changes look flat


@dataclass(frozen=True)
class _Panel:
    """One curve; `epoch` is that of the delta that was kept, `points` are in view box units."""

    name: str
    start: float
    best: float
    epoch: int
    points: tuple[tuple[float, float], ...]


def learning_curve_panels(curves: Mapping[str, Sequence[float]], best_epochs: Mapping[str, int] = NO_EPOCHS) -> Markup:
    """Render a panel for each curve; all have the same span of scores, so that slopes are comparable.

    Args:
        curves: Score before training and after each epoch, by task.
        best_epochs: The epoch whose delta was kept, by task; by default the first of the highest score.
    """
    span = max((max(curve) - min(curve) for curve in curves.values()), default=0.0)
    panels = [
        _panel(name, curve, epoch=best_epochs.get(name, curve.index(max(curve))), span=max(span, MIN_SPAN))
        for name, curve in curves.items()
    ]
    return render("curves.html", panels=panels, width=WIDTH, height=HEIGHT)


def _panel(name: str, curve: Sequence[float], *, epoch: int, span: float) -> _Panel:
    middle, best = (max(curve) + min(curve)) / 2, max(curve)
    step = (WIDTH - 2 * MARGIN) / max(len(curve) - 1, 1)
    points = [
        (MARGIN + step * number, HEIGHT / 2 - (HEIGHT - 2 * MARGIN) * (score - middle) / span)
        for number, score in enumerate(curve)
    ]
    return _Panel(name, curve[0], best, epoch, tuple(points))
