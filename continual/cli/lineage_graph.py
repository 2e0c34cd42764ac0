"""Lineage as Graphviz and Mermaid graphs, with names escaped so that they are only text."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from continual.escaping import escape_control_characters

Edges = Sequence[Mapping[str, Any]]  # rows of `continual lineage`
DOT_ESCAPES = {"\\": "\\\\", '"': '\\"', "&": "&amp;", "\n": "\\n", "\r": "\\r"}


def dot(edges: Edges, *, of: str) -> str:
    """Return a Graphviz graph with arrows from parents to the deltas that came from them.

    >>> print(dot([{"delta": "trec@1", "parent": "sst2@1", "kind": "warm_start", "weight": 1.0}], of="trec@1"))
    digraph lineage {
      rankdir=LR; node [shape=box];
      n0 [label="trec@1", style=bold];
      n1 [label="sst2@1"];
      n1 -> n0 [label="warm_start 1"];
    }

    Args:
        edges: Rows of `continual lineage`.
        of: The delta whose lineage this is; it is highlighted, and shown even without edges.
    """
    numbers = _node_numbers(edges, of=of)
    nodes = [f'  n{n} [label="{_escape_dot(name)}"{"" if n else ", style=bold"}];' for name, n in numbers.items()]
    arrows = [f'  n{tail} -> n{head} [label="{_escape_dot(label)}"];' for tail, head, label in _arrows(edges, numbers)]
    return "\n".join(["digraph lineage {", "  rankdir=LR; node [shape=box];", *nodes, *arrows, "}"])


def mermaid(edges: Edges, *, of: str) -> str:
    """Return a Mermaid flowchart with arrows from parents to the deltas that came from them.

    >>> print(mermaid([{"delta": "trec@1", "parent": "sst2@1", "kind": "warm_start", "weight": 1.0}], of="trec@1"))
    flowchart LR
      n0["trec@1"]:::asked
      n1["sst2@1"]
      n1 -->|"warm_start 1"| n0
      classDef asked stroke-width:3px

    Args:
        edges: Rows of `continual lineage`.
        of: The delta whose lineage this is; it is highlighted, and shown even without edges.
    """
    numbers = _node_numbers(edges, of=of)
    nodes = [f'  n{n}["{_escape_mermaid(name)}"]{"" if n else ":::asked"}' for name, n in numbers.items()]
    arrows = [f'  n{tail} -->|"{_escape_mermaid(label)}"| n{head}' for tail, head, label in _arrows(edges, numbers)]
    return "\n".join(["flowchart LR", *nodes, *arrows, "  classDef asked stroke-width:3px"])


def _node_numbers(edges: Edges, *, of: str) -> dict[str, int]:
    """Number the deltas, `of` first; it has a number even without edges."""
    names = [of, *(edge[end] for edge in edges for end in ("delta", "parent"))]
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def _arrows(edges: Edges, numbers: Mapping[str, int]) -> Iterable[tuple[int, int, str]]:
    for edge in edges:
        yield numbers[edge["parent"]], numbers[edge["delta"]], f"{edge['kind']} {edge['weight']:.3g}"


def _escape_dot(text: str) -> str:
    return "".join(DOT_ESCAPES.get(character, character) for character in escape_control_characters(text))


def _escape_mermaid(text: str) -> str:
    """Write all characters but letters, digits and a few harmless ones as numeric entities."""
    return "".join(
        character if character.isalnum() or character in " @._-" else f"#{ord(character)};" for character in text
    )
