"""A YAML file as a plain value that still knows on which line each part was written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import StreamError


@dataclass(frozen=True)
class YamlDocument:
    """The mapping that a YAML file holds, and the tree of nodes it was built from."""

    path: Path
    value: dict[Any, Any]
    node: Any

    def line_of(self, place: Sequence[int | str]) -> int:
        """The line (from 1) of the deepest part of `place`, a path of keys and indices, that the file has."""
        node, line = self.node, self.node.start_mark.line
        for step in place:
            found = _child(node, step)
            if found is None:
                break
            node, line = found
        return int(line) + 1


def parse_yaml(path: Path) -> YamlDocument:
    """Read the one YAML mapping in `path`.

    Raises: StreamError, naming file, line and column, for a file that cannot be read, is not UTF-8, is not YAML,
    is empty, is no mapping, or gives a key twice (of which YAML readers silently keep the last).
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
    said = [getattr(error, "context", None), getattr(error, "problem", None) or getattr(error, "reason", None)]
    return ", ".join(part for part in said if part) or type(error).__name__


def _refuse_repeated_keys(root: Any, path: Path) -> None:
    for mapping in _mappings(root):
        seen: dict[tuple[str, str], int] = {}
        for key, _ in mapping.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if (first := seen.get((key.tag, key.value))) is not None:
                raise StreamError(f"{path}:{line}: key {key.value!r} is given twice, first on line {first}; drop one")
            seen[key.tag, key.value] = line


def _mappings(root: Any) -> Iterator[Any]:
    waiting, met = [root], set()
    while waiting:
        node = waiting.pop(0)
        if id(node) in met or isinstance(node, yaml.ScalarNode) or node is None:
            continue  # an alias brings the same node again, perhaps inside itself
        met.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield node
            waiting += [part for pair in node.value for part in pair]
        else:
            waiting += node.value


def _child(node: Any, step: int | str) -> tuple[Any, int] | None:
    """The node under key or index `step`, and the line where it starts (of a key: the key's line)."""
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step].start_mark.line
    if isinstance(node, yaml.MappingNode):
        for key, value in reversed(node.value):  # what `<<` merged in stands first and loses
            if key.value == str(step):
                return value, key.start_mark.line
    return None
