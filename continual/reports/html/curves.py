"""Learning curves, a small panel for each task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from continual.reports.html.document import render

WIDTH, HEIGHT, MARGIN = 160.0, 64.0, 6.0  # of a panel, in pixels where the page is wide enough
LEAST_SPAN = 0.02  # what changes by less looks flat


@dataclass(frozen=True)
class _Panel:
    name: str
    start: float
    best: float
    epoch: int  # of the best
    points: tuple[tuple[float, float], ...]


def learning_curve_panels(curves: Mapping[str, Sequence[float]]) -> Markup:
    """A panel for each curve, a score after each epoch, epoch 0 first; all panels span as much, so slopes compare."""
    span = max((max(curve) - min(curve) for curve in curves.values()), default=0.0)
    panels = [_panel(name, curve, span=max(span, LEAST_SPAN)) for name, curve in curves.items()]
    return render("curves.html", panels=panels, width=WIDTH, height=HEIGHT)


def _panel(name: str, curve: Sequence[float], *, span: float) -> _Panel:
    middle, best = (max(curve) + min(curve)) / 2, max(curve)
    across = (WIDTH - 2 * MARGIN) / max(len(curve) - 1, 1)
    points = [
        (MARGIN + across * epoch, HEIGHT / 2 - (HEIGHT - 2 * MARGIN) * (score - middle) / span)
        for epoch, score in enumerate(curve)
    ]
    return _Panel(name, curve[0], best, curve.index(best), tuple(points))
