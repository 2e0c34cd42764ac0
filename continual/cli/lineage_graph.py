"""Pictures of lineage, in the languages of Graphviz and Mermaid. Names are data: nothing in one is obeyed."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from continual.escaping import escape_control_characters

Edges = Sequence[Mapping[str, Any]]  # rows of `continual lineage`
DOT = {"\\": "\\\\", '"': '\\"', "&": "&amp;", "\n": "\\n", "\r": "\\r"}


def dot(edges: Edges, *, of: str) -> str:
    """A graph for Graphviz: arrows from parents to what came from them.

    >>> print(dot([{"delta": "trec@1", "parent": "sst2@1", "kind": "warm_start", "weight": 1.0}], of="trec@1"))
    digraph lineage {
      rankdir=LR; node [shape=box];
      n0 [label="trec@1", style=bold];
      n1 [label="sst2@1"];
      n1 -> n0 [label="warm_start 1"];
    }
    """
    numbers = _numbers(edges, of=of)
    nodes = [f'  n{n} [label="{_dot(name)}"{"" if n else ", style=bold"}];' for name, n in numbers.items()]
    arrows = [f'  n{tail} -> n{head} [label="{_dot(label)}"];' for tail, head, label in _arrows(edges, numbers)]
    return "\n".join(["digraph lineage {", "  rankdir=LR; node [shape=box];", *nodes, *arrows, "}"])


def mermaid(edges: Edges, *, of: str) -> str:
    """The same for Mermaid, which Markdown shows.

    >>> print(mermaid([{"delta": "trec@1", "parent": "sst2@1", "kind": "warm_start", "weight": 1.0}], of="trec@1"))
    flowchart LR
      n0["trec@1"]:::asked
      n1["sst2@1"]
      n1 -->|"warm_start 1"| n0
      classDef asked stroke-width:3px
    """
    numbers = _numbers(edges, of=of)
    nodes = [f'  n{n}["{_mermaid(name)}"]{"" if n else ":::asked"}' for name, n in numbers.items()]
    arrows = [f'  n{tail} -->|"{_mermaid(label)}"| n{head}' for tail, head, label in _arrows(edges, numbers)]
    return "\n".join(["flowchart LR", *nodes, *arrows, "  classDef asked stroke-width:3px"])


def _numbers(edges: Edges, *, of: str) -> dict[str, int]:
    """The deltas by number, the one that was asked for first: also where nothing came from it, it is shown."""
    names = [of, *(edge[end] for edge in edges for end in ("delta", "parent"))]
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def _arrows(edges: Edges, numbers: Mapping[str, int]) -> Iterable[tuple[int, int, str]]:
    for edge in edges:
        yield numbers[edge["parent"]], numbers[edge["delta"]], f"{edge['kind']} {edge['weight']:.3g}"


def _dot(text: str) -> str:
    return "".join(DOT.get(letter, letter) for letter in escape_control_characters(text))


def _mermaid(text: str) -> str:
    """Everything but letters, digits and a few harmless signs by its number."""
    return "".join(letter if letter.isalnum() or letter in " @._-" else f"#{ord(letter)};" for letter in text)
