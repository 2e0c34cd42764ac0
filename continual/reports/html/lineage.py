"""Render lineage as a layered graph in SVG: every delta is to the right of the deltas it came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from unicodedata import east_asian_width

from markupsafe import Markup

from continual.escaping import escape_control_characters
from continual.reports.html.document import render

Edges = Sequence[Mapping[str, Any]]  # rows of `Registry.parents`, in the order of learning

LETTER_WIDTH, LINE_HEIGHT, PADDING = 7.2, 18.0, 10.0  # pixels; the width is an upper bound
MAX_LETTERS = 24  # of a name that are shown
LAYER_GAP, BOX_GAP = 140.0, 14.0  # pixels between layers, with room for an edge's label, and between boxes
TOP_MARGIN = 8.0  # pixels above the first box, with room for an edge's label


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
    """Render a graph of deltas, with an arrow from parent to child labelled by kind and weight.

    Args:
        edges: Rows of `Registry.parents`, in the order of learning; at least one.
    """
    layers = _layers(edges)
    boxes = _boxes(layers, edges)
    arrows = [arrow for name in boxes for arrow in _arrows(name, boxes, edges)]
    width = max(box.x + box.width for box in boxes.values()) + 1
    height = max(box.y + box.height for box in boxes.values()) + 1
    return render("lineage.html", boxes=list(boxes.values()), arrows=arrows, width=width, height=height)


def _layers(edges: Edges) -> list[list[str]]:
    """Return the deltas by the length of the longest path to them, each layer in the order of its parents."""
    depth: dict[str, int] = {}
    for edge in edges:  # a parent was learned before its child, so its own depth is known
        min_depth = depth.setdefault(edge["parent"], 0) + 1
        depth[edge["delta"]] = max(depth.get(edge["delta"], 0), min_depth)
    layers = [[name for name, layer in depth.items() if layer == level] for level in range(max(depth.values()) + 1)]
    for previous, layer in pairwise(layers):
        index = {name: number for number, name in enumerate(previous)}
        parent_index = {edge["delta"]: index[edge["parent"]] for edge in reversed(edges) if edge["parent"] in index}
        layer.sort(key=lambda name: parent_index[name])
    return layers


def _boxes(layers: Sequence[Sequence[str]], edges: Edges) -> dict[str, _Box]:
    """Return each delta's box: layers side by side, and a box as high as its incoming edges need."""
    boxes, x = {}, 1.0
    for layer in layers:
        texts = {name: _short(escape_control_characters(name)) for name in layer}
        width, y = max(map(_width, texts.values())), TOP_MARGIN
        for name in layer:
            height = LINE_HEIGHT * max(1, sum(edge["delta"] == name for edge in edges)) + PADDING
            boxes[name] = _Box(name, texts[name], x, y, width, height)
            y += height + BOX_GAP
        x += width + LAYER_GAP
    return boxes


def _arrows(name: str, boxes: Mapping[str, _Box], edges: Edges) -> list[_Arrow]:
    """Return the arrows that end at a delta, one below the other."""
    incoming, box = [edge for edge in edges if edge["delta"] == name], boxes[name]
    return [
        _Arrow(
            f"{edge['kind'].replace('_', ' ')} {edge['weight']:.3g}",
            boxes[edge["parent"]].right,
            (box.x, box.y + box.height * (number + 0.5) / len(incoming)),
        )
        for number, edge in enumerate(incoming)
    ]


def _short(name: str) -> str:
    """Shorten a name to the beginning of its task and its version."""
    if len(name) <= MAX_LETTERS:
        return name
    task, sign, version = name.rpartition("@")
    return f"{task[: MAX_LETTERS - len(version) - 2]}…{sign}{version}"


def _width(text: str) -> float:
    return LETTER_WIDTH * sum(2 if east_asian_width(sign) in "WF" else 1 for sign in text) + 2 * PADDING
