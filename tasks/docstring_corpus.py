"""Corpora available in every install: sentences of the docstrings of installed packages.

A package is one task. Its sentences are labelled by their role (does it say what a function does, what an argument, a
result or an error is, or is it a note?), or by their area (which first-level subpackage is it from?), or are to be
written from the signatures of the functions that they summarise. Sources are parsed, never imported.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

import docstring_parser
import yaml

from tasks.errors import DataError
from tasks.source_spec import SPLITS, Split

# Dependencies of the project itself, so always installed, with sections for arguments, results and errors.
PACKAGES = ("networkx", "pandas", "matplotlib", "torch")
WRITING_PACKAGES, READING_PACKAGE = ("networkx", "pandas", "torch"), "matplotlib"
INSTRUCTION = "Write the first line of this function's docstring."
Labels = Literal["role", "area"]

_ROLES: Mapping[str, str] = {  # by the names that `docstring_parser` gives to sections
    "param": "argument",
    "other_param": "argument",
    "return": "result",
    "returns": "result",
    "yields": "result",
    "raises": "error",
    "notes": "note",
}
_NUMPYDOC = re.compile(r"^\s*-{3,}\s*$", re.MULTILINE)
_REST = re.compile(r"^\s*:(param|returns?|raises)\b", re.MULTILINE)
_GOOGLE = re.compile(r"^\s*(Args|Returns|Yields|Raises):\s*$", re.MULTILINE)
_SECTION = re.compile(rf"{_NUMPYDOC.pattern}|{_REST.pattern}|{_GOOGLE.pattern}", re.MULTILINE)
_MARKUP = re.compile(r":[\w:.-]+:`~?\.?([^`<]*?)(?:\s*<[^>]*>)?`")  # a reference of reStructuredText
_SENTENCE = re.compile(r".{15,}?[.!?](?=\s+[A-Z(]|$)")

# Areas without a subject, vendored, or absent from newer versions of Python.
_SKIPPED_AREAS = {"test", "tests", "testing", "externals", "vendored", "utils", "util", "compat", "distutils"}

_MIN_WORDS, _MAX_CHARACTERS = 4, 300
_MAX_LABELS, _MIN_LABELS, _MIN_TRAIN_ROWS = 8, 3, 25
_MAX_ROWS: dict[Split, int] = {"train": 500, "validation": 120, "test": 200}
_WRITING_ROWS: dict[Split, int] = {"train": 96, "validation": 16, "test": 24}  # of a task that writes
_DEMO_ROWS: dict[Split, int] = {"train": 300, "validation": 100, "test": 200}  # of a task, for a few minutes in all
_SPLIT_PERCENTILES: dict[Split, int] = {"train": 60, "validation": 75, "test": 100}  # percent of all texts, by hash

Row = tuple[str, str]
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def area_rows(package: str) -> list[Row]:
    """Return the docstring summaries of an installed package's public functions, classes and methods, by area.

    Args:
        package: Name of an installed top-level package.

    Returns:
        Pairs (text, area), ordered by the text's hash. The text is the docstring's first paragraph, of at least four
        words; a text that several areas share is dropped.

    Raises:
        DataError: No such package is installed.
    """
    return _unambiguous(
        (text, inner[0])
        for file, inner in _sources(package)
        if inner and not inner[0].startswith("_")
        for definition in _public_definitions(file)
        if _has_words(text := _summary(ast.get_docstring(definition) or ""))
    )


def role_rows(package: str) -> list[Row]:
    """Return the first sentences of the sections of an installed package's public docstrings, by their role.

    Args:
        package: Name of an installed top-level package.

    Returns:
        Pairs (text, role), ordered by the text's hash; the roles are summary, argument, result, error and note. A text
        has at least four words; one with several roles is dropped.

    Raises:
        DataError: No such package is installed.
    """
    return _unambiguous(
        (sentence, role)
        for file, _ in _sources(package)
        for definition in _public_definitions(file)
        for text, role in _sections(ast.get_docstring(definition) or "")
        if _has_words(sentence := _first_sentence(text))
    )


def module_rows(file: Path) -> list[Row]:
    """Return the sentences of a module's public docstrings, by the role of the part that they are in.

    The roles are those of `role_rows`. Paragraphs after the summary are notes; examples are left out.

    Args:
        file: Source of the module; it is parsed, never imported.

    Returns:
        Pairs (text, role) as of `role_rows`; none where the file cannot be parsed.
    """
    docstrings = (ast.get_docstring(definition) or "" for definition in _public_definitions(file))
    return _unambiguous(
        (sentence, role)
        for docstring in docstrings
        for text, role in _parts(docstring)
        for sentence in _sentences(text)
        if _has_words(sentence)
    )


def _parts(docstring: str) -> Iterator[Row]:
    """Yield (text, role) of a docstring's paragraphs and of the entries of its sections."""
    if _style(docstring):
        yield from _sections(docstring)
        docstring = docstring[: section.start()] if (section := _SECTION.search(docstring)) else docstring
    first, *others = docstring.split("\n\n")
    yield first, "summary"
    for paragraph in others:
        if not paragraph.lstrip().startswith((">>>", "..")) and not paragraph.startswith(" "):
            yield paragraph, "note"


def signature_rows(package: str) -> list[Row]:
    """Return the signatures of an installed package's public functions and methods, with their docstrings' first line.

    Args:
        package: Name of an installed top-level package.

    Returns:
        Pairs (signature, first sentence of the docstring), ordered by the signature's hash. A sentence has at least
        four words; a signature with several is dropped.

    Raises:
        DataError: No such package is installed.
    """
    functions = (
        definition
        for file, _ in _sources(package)
        for definition in _public_definitions(file)
        if not isinstance(definition, ast.ClassDef)
    )
    sentences = ((_signature(each), _first_sentence(ast.get_docstring(each) or "")) for each in functions)
    return _unambiguous(row for row in sentences if _has_words(row[1]))


def _signature(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return f"def {function.name}({ast.unparse(function.args)})"[:_MAX_CHARACTERS]


def _has_words(text: str) -> bool:
    return len(text.split()) >= _MIN_WORDS


def _unambiguous(rows: Iterator[Row]) -> list[Row]:
    labels: dict[str, set[str]] = defaultdict(set)
    for text, label in rows:
        labels[text].add(label)
    return sorted(
        ((text, min(labels_of_text)) for text, labels_of_text in labels.items() if len(labels_of_text) == 1), key=_rank
    )


def write_demo_stream(folder: Path, *, packages: Sequence[str] = PACKAGES, label: Labels = "role") -> Path:
    """Write a stream file and JSON lines with one classification task per usable installed package.

    A package is usable if three labels have at least 25 train rows; its eight largest ones are taken. The same
    installed versions always give the same files.

    Args:
        folder: Created if missing.
        packages: Names of top-level packages; those that are not installed or not usable are left out.
        label: What is told of a sentence: its role in a docstring, or the subpackage that it is from.

    Returns:
        The path of the stream file.

    Raises:
        DataError: Fewer than two of `packages` are installed and usable.
    """
    if label not in get_args(Labels):
        raise DataError(f"there is no label {label!r} of docstrings; allowed: {', '.join(get_args(Labels))}")
    rows_of = role_rows if label == "role" else area_rows
    splits_by_package = {package: _task_rows(rows_of(package)) for package in packages if _folders(package)}
    usable = {package: splits for package, splits in splits_by_package.items() if splits}
    if len(usable) < 2:
        raise DataError(
            f"the demo needs two installed packages with docstrings of {_MIN_LABELS} {label}s; usable of "
            f"{', '.join(packages) or 'none given'}: {', '.join(usable) or 'none'}; name other packages"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for package, splits in usable.items():
        for split, rows in splits.items():
            _write_lines(folder / f"{package}.{split}.jsonl", rows, keys=("text", "label"))
    return _write_stream(folder, _stream(list(usable)))


def write_writing_stream(folder: Path) -> Path:
    """Write a stream file and JSON lines for a language model: three tasks that write summaries, and one that labels.

    The first three read a function's signature and write the first line of its docstring, each of one package of
    WRITING_PACKAGES. The last labels sentences of READING_PACKAGE by their role.

    Args:
        folder: Created if missing.

    Returns:
        The path of the stream file.

    Raises:
        DataError: A package is not installed, or has too few docstrings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in WRITING_PACKAGES:
        by_split: dict[Split, list[Row]] = {split: [] for split in SPLITS}
        for row in signature_rows(package):
            by_split[_split(row)].append(row)
        for split, rows in by_split.items():
            _write_lines(folder / f"{package}.{split}.jsonl", rows, keys=("signature", "summary"))
    splits = _task_rows(role_rows(READING_PACKAGE))
    for split, rows in splits.items():
        _write_lines(folder / f"{READING_PACKAGE}.{split}.jsonl", rows, keys=("text", "label"))
    writing = {"kind": "generation", "text": "signature", "target": "summary", "instruction": INSTRUCTION}
    tasks: list[dict[str, object]] = [
        {"name": name, "source": _source(name), **writing, "metric": "chrf", "rows": dict(_WRITING_ROWS)}
        for name in WRITING_PACKAGES
    ]
    budget = {"epochs": 2, "batch_size": 8, "learning_rate": 1.0e-3, "max_length": 128, "max_new_tokens": 32}
    tasks.append(_labelling(READING_PACKAGE))
    return _write_stream(folder, {**_COMMON, "backbone": "smollm2", "budget": budget, "tasks": tasks})


_COMMON: Mapping[str, object] = {
    "name": "demo",
    "seed": 0,
    "method": {"name": "lora", "rank": 8},
    "warm_start": "auto",
    "measure_gain": True,
}


def _stream(packages: Sequence[str]) -> dict[str, object]:
    budget = {"epochs": 3, "batch_size": 32, "learning_rate": 2.0e-3, "max_length": 64}
    return {**_COMMON, "backbone": "minilm", "budget": budget, "tasks": [_labelling(package) for package in packages]}


def _labelling(package: str) -> dict[str, object]:
    columns = {"text": "text", "label": "label"}
    return {"name": package, "kind": "classification", "source": _source(package), **columns, "rows": dict(_DEMO_ROWS)}


def _source(package: str) -> dict[str, object]:
    return {"path": "json", "data_files": {split: f"{package}.{split}.jsonl" for split in SPLITS}}


def _write_lines(file: Path, rows: Sequence[Row], *, keys: tuple[str, str]) -> None:
    lines = [json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows]
    file.write_text("".join(lines), encoding="utf-8")


def _write_stream(folder: Path, stream: Mapping[str, object]) -> Path:
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump(dict(stream), sort_keys=False), encoding="utf-8")
    return path


def _task_rows(rows: Sequence[Row]) -> dict[Split, list[Row]]:
    """Return rows by split, every label equally capped; an empty dict if too few labels have enough rows."""
    by_label: dict[str, dict[Split, list[Row]]] = defaultdict(lambda: {split: [] for split in SPLITS})
    for row in rows:
        by_label[row[1]][_split(row)].append(row)
    frequent = [splits for splits in by_label.values() if len(splits["train"]) >= _MIN_TRAIN_ROWS]
    chosen = sorted(frequent, key=lambda splits: len(splits["train"]), reverse=True)[:_MAX_LABELS]
    if len(chosen) < _MIN_LABELS:
        return {}
    return {split: _take_evenly([splits[split] for splits in chosen], _MAX_ROWS[split]) for split in SPLITS}


def _take_evenly(labels: Sequence[Sequence[Row]], total: int) -> list[Row]:
    """Return at most `total` rows, larger labels cut first; ordered by hash, so that labels are mixed."""
    by_height = sorted((row for rows in labels for row in enumerate(rows)), key=lambda row: (row[0], _rank(row[1])))
    return sorted((row for _, row in by_height[:total]), key=_rank)


def _rank(row: Row) -> str:
    return hashlib.sha256(row[0].encode("utf-8", "backslashreplace")).hexdigest()


def _split(row: Row) -> Split:
    percent = int(_rank(row)[:8], 16) % 100
    return next(split for split, upper_percent in _SPLIT_PERCENTILES.items() if percent < upper_percent)


def _folders(package: str) -> list[Path]:
    """Return the folders of a top-level package, without importing it."""
    try:
        spec = find_spec(package) if package.isidentifier() else None
    except ValueError:  # a module without a spec, put into sys.modules by hand
        spec = None
    return [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []


def _sources(package: str) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield the files of an installed package, each with the names of the subpackages that it is in."""
    folders = _folders(package)
    if not folders:
        raise DataError(f"no package {package!r} is installed; name an installed top-level package, as in 'numpy'")
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            inner = file.relative_to(folder).parts[:-1]
            if not _SKIPPED_AREAS.intersection(inner):
                yield file, inner


def _public_definitions(file: Path) -> Iterator[Definition]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):  # templates that only look like Python
        return
    yield from _walk_public(tree)


def _walk_public(node: ast.AST) -> Iterator[Definition]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if child.name.startswith("_"):
                continue
            yield child
        if isinstance(child, ast.ClassDef | ast.If | ast.Try):
            yield from _walk_public(child)


def _summary(docstring: str) -> str:
    return " ".join(docstring.partition("\n\n")[0].split())[:_MAX_CHARACTERS].rstrip()


def _sections(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield (text, role) of the summary and of each section's entries, if there is a section."""
    style = _style(docstring)
    if style is None:
        return
    try:
        parsed = docstring_parser.parse(docstring, style=style)
    except docstring_parser.ParseError:  # sections that only look like some
        return
    yield parsed.short_description or "", "summary"
    for entry in parsed.meta:
        if entry.args and entry.args[0] in _ROLES:
            yield entry.description or "", _ROLES[entry.args[0]]


def _style(docstring: str) -> docstring_parser.DocstringStyle | None:
    patterns = {"NUMPYDOC": _NUMPYDOC, "REST": _REST, "GOOGLE": _GOOGLE}
    name = next((name for name, pattern in patterns.items() if pattern.search(docstring)), None)
    return docstring_parser.DocstringStyle[name] if name else None


def _first_sentence(text: str) -> str:
    plain = _plain(text.partition("\n\n")[0])
    sentence = _SENTENCE.match(plain)
    return (sentence[0] if sentence else plain)[:_MAX_CHARACTERS].rstrip()


def _sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text, the last one with or without its full stop."""
    plain, start = _plain(text), 0
    for sentence in _SENTENCE.finditer(plain):
        start = sentence.end()
        yield sentence[0].strip()[:_MAX_CHARACTERS].rstrip()
    yield plain[start:].strip()[:_MAX_CHARACTERS].rstrip()


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[`*]", "", _MARKUP.sub(r"\1", text)).split())
