"""YAML files parsed with the line number of each part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import StreamError


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
            (YAML readers silently keep the last); file, line and column are named.
    """
    text = _text(path)
    loader = yaml.SafeLoader("")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _refuse_repeated_keys(node, path)
        value = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise StreamError(f"{_where(path, text, error)}: not valid YAML: {_reason(error)}") from error
    except (ValueError, RecursionError) as error:  # a date such as 2001-99-99; brackets nested thousands deep
        raise StreamError(f"{path}: not valid YAML: {error}") from error
    finally:
        loader.dispose()
    if value is None or node is None:
        raise StreamError(f"{path}: the file is empty; a stream starts with `name:` and lists its `tasks:`")
    if not isinstance(value, dict):
        line = node.start_mark.line + 1
        raise StreamError(f"{path}:{line}: should be a mapping of keys to values; got a {type(value).__name__}")
    return YamlDocument(path, value, node)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise StreamError(f"{path}: no such file; check the path") from error
    except (OSError, ValueError) as error:
        reason = "a folder, not a file" if path.is_dir() else str(error)
        raise StreamError(f"{path}: cannot be read: {reason}; give the path of a YAML file") from error
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
    queue, visited = [root], set()
    while queue:
        node = queue.pop(0)
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
