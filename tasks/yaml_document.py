"""YAML files parsed with the line number of each part."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import StreamError
from tasks.regular_file import regular_size

MAX_BYTES = 16 * 2**20  # of a file
MAX_DEPTH = 32  # of lists and mappings in each other
MAX_NODES = 1_000_000  # keys, values, lists and mappings, with every alias written out
SHOWN_PATH = 300  # characters of a path in a message
BASE_60 = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


@dataclass(frozen=True)
class YamlDocument:
    """A parsed YAML file.

    Attributes:
        path: The file.
        value: The parsed mapping.
        node: The tree of YAML nodes that `value` was built from.
    """

    path: Path
    value: dict[Any, Any]
    node: Any

    def line_of(self, key_path: Sequence[int | str]) -> int:
        """Return the line (from 1) of the deepest existing part of `key_path`, a path of keys and indices."""
        node, line = self.node, self.node.start_mark.line
        for step in key_path:
            child = _child(node, step)
            if child is None:
                break
            node, line = child
        return int(line) + 1

    def scalar(self, key_path: Sequence[int | str]) -> str | None:
        """Return the text of the value at `key_path` as it is written, or None if it is no scalar."""
        node = self.node
        for step in key_path:
            child = _child(node, step)
            if child is None:
                return None
            node, _ = child
        return str(node.value) if isinstance(node, yaml.ScalarNode) else None


def parse_yaml(path: Path) -> YamlDocument:
    """Parse the one YAML mapping in `path`.

    Raises:
        StreamError: The file cannot be read, is not UTF-8 or not YAML, is empty, is not a mapping, or repeats a key
            (YAML readers silently keep the last); it is nested deeper than `MAX_DEPTH`, has more than `MAX_NODES`
            parts, or holds a number in base 60; file, line and column are named.
    """
    text = _text(path)
    try:
        node, value = load_yaml(text, path=path)
    except yaml.YAMLError as error:
        raise StreamError(f"{_where(path, text, error)}: not valid YAML: {_reason(error)}") from error
    except ValueError as error:  # a date such as 2001-99-99
        raise StreamError(f"{path}: not valid YAML: {error}") from error
    if value is None or node is None:
        raise StreamError(f"{path}: the file is empty; a stream starts with `name:` and lists its `tasks:`")
    if not isinstance(value, dict):
        line = node.start_mark.line + 1
        raise StreamError(f"{path}:{line}: should be a mapping of keys to values; got a {type(value).__name__}")
    return YamlDocument(path, value, node)


def load_yaml(text: str, *, path: Path | None = None) -> tuple[Any, Any]:
    """Parse one YAML document whose size, with every alias written out, is bounded.

    Args:
        text: The document.
        path: Its file: a mapping in it may not repeat a key.

    Returns:
        The tree of nodes and the value; None and None of an empty document.

    Raises:
        yaml.YAMLError: It is no YAML, or beyond the bounds.
        ValueError: A number or a date cannot be, or nesting is deeper than Python's stack.
        StreamError: A key is repeated.
    """
    loader = yaml.SafeLoader("")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None, None
        _refuse_beyond_bounds(node)
        if path is not None:
            _refuse_repeated_keys(node, path)
        return node, loader.construct_document(node)
    except RecursionError as error:
        raise ValueError(_too_deep()) from error
    finally:
        loader.dispose()


def _too_deep() -> str:
    return f"lists and mappings are nested more than {MAX_DEPTH} deep; write it flatter"


def _refuse_beyond_bounds(root: Any) -> None:
    """Refuse nesting, size and base 60 by the nodes, before anything is built of them."""
    sizes: dict[int, tuple[int, int]] = {}  # depth and number of nodes, with every alias written out
    open_nodes: set[int] = set()

    def measure(node: Any) -> tuple[int, int]:  # an anchor stands before its aliases, so this recurses as parsing did
        if (known_size := sizes.get(id(node))) is not None:
            return known_size
        if id(node) in open_nodes:
            raise _refusal(node, "this part holds itself by an alias; write out what is meant")
        if isinstance(node, yaml.ScalarNode):
            _refuse_base_60(node)
            return 1, 1
        open_nodes.add(id(node))
        children = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        measured = [measure(child) for child in children]
        open_nodes.remove(id(node))
        depth, size = 1 + max((depth for depth, _ in measured), default=0), 1 + sum(size for _, size in measured)
        if depth > MAX_DEPTH:
            raise _refusal(node, _too_deep())
        if size > MAX_NODES:
            raise _refusal(node, f"with its aliases written out it has more than {MAX_NODES:,} parts; write less")
        sizes[id(node)] = depth, size
        return depth, size

    measure(root)


def _refuse_base_60(node: yaml.ScalarNode) -> None:
    if node.tag in BASE_60 and ":" in node.value:
        raise _refusal(
            node,
            f"{node.value[:40]} is a number in base 60 to YAML (1:30 is 90); write it as a plain number, or in quotes",
        )


def _refusal(node: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _text(path: Path) -> str:
    shown = str(path) if len(str(path)) <= SHOWN_PATH else f"{str(path)[:SHOWN_PATH]}… ({len(str(path))} characters)"
    advice = "give the path of a YAML file"
    try:
        if (size := regular_size(path)) > MAX_BYTES:
            raise StreamError(f"{shown}: {size:,} bytes, and at most {MAX_BYTES:,} are read; {advice}")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise StreamError(f"{shown}: no such file; check the path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StreamError(f"{shown}: cannot be read: {reason}; {advice}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise StreamError(f"{path}:{line}: byte {data[error.start]:#04x} is not UTF-8; save it as UTF-8") from error


def _where(path: Path, text: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        return f"{path}:{mark.line + 1}:{mark.column + 1}"
    before = text[: getattr(error, "position", 0)]  # a character that YAML does not allow
    return f"{path}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


def _reason(error: yaml.YAMLError) -> str:
    parts = [getattr(error, "context", None), getattr(error, "problem", None) or getattr(error, "reason", None)]
    return ", ".join(part for part in parts if part) or type(error).__name__


def _refuse_repeated_keys(root: Any, path: Path) -> None:
    for mapping in _mappings(root):
        lines: dict[tuple[str, str], int] = {}
        for key, _ in mapping.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if (first_line := lines.get((key.tag, key.value))) is not None:
                raise StreamError(
                    f"{path}:{line}: key {key.value!r} is given twice, first on line {first_line}; drop one"
                )
            lines[key.tag, key.value] = line


def _mappings(root: Any) -> Iterator[Any]:
    queue, visited = deque([root]), set()
    while queue:
        node = queue.popleft()
        if id(node) in visited or isinstance(node, yaml.ScalarNode) or node is None:
            continue  # an alias repeats a node, perhaps inside itself
        visited.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield node
            queue += [part for pair in node.value for part in pair]
        else:
            queue += node.value


def _child(node: Any, step: int | str) -> tuple[Any, int] | None:
    """Return the node under key or index `step` and its line; for a key, the key's line."""
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step].start_mark.line
    if isinstance(node, yaml.MappingNode):
        for key, value in reversed(node.value):  # merged keys (`<<`) come first and are overridden
            if key.value == str(step):
                return value, key.start_mark.line
    return None
