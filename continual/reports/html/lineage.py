"""The graph of what came from what, in layers from left to right: no delta stands before one that it came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from unicodedata import east_asian_width

from markupsafe import Markup

from continual.escaping import escape_control_characters
from continual.reports.html.document import render

Edges = Sequence[Mapping[str, Any]]  # rows of `Registry.parents`, in the order of learning

LETTER, LINE, PADDING = 7.2, 18.0, 10.0  # pixels: width of a letter at most, height of a line
WIDEST = 24  # letters of a name that are shown
ACROSS, BELOW = 140.0, 14.0  # pixels between two layers, for what is said of an edge, and between two boxes
TOP = 8.0  # pixels above the first box, for the same


@dataclass(frozen=True)
class _Box:
    name: str
    text: str
    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> tuple[float, float]:
        return self.x + self.width, self.y + self.height / 2


@dataclass(frozen=True)
class _Arrow:
    text: str
    begin: tuple[float, float]
    end: tuple[float, float]

    @property
    def bend(self) -> float:
        return (self.begin[0] + self.end[0]) / 2


def lineage_graph(edges: Edges) -> Markup:
    """The deltas that edges join, and the edges with their kinds and weights."""
    layers = _layers(edges)
    boxes = _boxes(layers, edges)
    arrows = [arrow for name in boxes for arrow in _arrows(name, boxes, edges)]
    width = max(box.x + box.width for box in boxes.values()) + 1
    height = max(box.y + box.height for box in boxes.values()) + 1
    return render("lineage.html", boxes=list(boxes.values()), arrows=arrows, width=width, height=height)


def _layers(edges: Edges) -> list[list[str]]:
    """The deltas by the length of the longest way that leads to them, each near what it came from."""
    depth: dict[str, int] = {}
    for edge in edges:  # a parent was learned before its child, so its own depth is known
        least = depth.setdefault(edge["parent"], 0) + 1
        depth[edge["delta"]] = max(depth.get(edge["delta"], 0), least)
    layers = [[name for name, own in depth.items() if own == level] for level in range(max(depth.values()) + 1)]
    for before, layer in pairwise(layers):
        place = {name: number for number, name in enumerate(before)}
        above = {edge["delta"]: place[edge["parent"]] for edge in reversed(edges) if edge["parent"] in place}
        layer.sort(key=lambda name: above[name])
    return layers


def _boxes(layers: Sequence[Sequence[str]], edges: Edges) -> dict[str, _Box]:
    """Where each delta stands: as high as what comes to it needs, the layers one beside the other."""
    boxes, x = {}, 1.0
    for layer in layers:
        texts = {name: _short(escape_control_characters(name)) for name in layer}
        width, y = max(map(_width, texts.values())), TOP
        for name in layer:
            height = LINE * max(1, sum(edge["delta"] == name for edge in edges)) + PADDING
            boxes[name] = _Box(name, texts[name], x, y, width, height)
            y += height + BELOW
        x += width + ACROSS
    return boxes


def _arrows(name: str, boxes: Mapping[str, _Box], edges: Edges) -> list[_Arrow]:
    """The edges that come to a delta, one below the other."""
    own, box = [edge for edge in edges if edge["delta"] == name], boxes[name]
    return [
        _Arrow(
            f"{edge['kind'].replace('_', ' ')} {edge['weight']:.3g}",
            boxes[edge["parent"]].right,
            (box.x, box.y + box.height * (number + 0.5) / len(own)),
        )
        for number, edge in enumerate(own)
    ]


def _short(name: str) -> str:
    """As much of a name as there is room for: its beginning and its version."""
    if len(name) <= WIDEST:
        return name
    task, sign, version = name.rpartition("@")
    return f"{task[: WIDEST - len(version) - 2]}…{sign}{version}"


def _width(text: str) -> float:
    return LETTER * sum(2 if east_asian_width(sign) in "WF" else 1 for sign in text) + 2 * PADDING
