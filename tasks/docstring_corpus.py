"""A demo corpus available in every install: docstrings of installed packages, labelled by subpackage.

A package is one task: which of its first-level subpackages ("areas") does this sentence describe? Sources are parsed,
never imported.
"""

from __future__ import annotations

import ast
import hashlib
import json
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import yaml

from tasks.errors import DataError
from tasks.spec import SPLITS, Split

# Dependencies of the project itself, so always installed. Transformers is left out: 50 MB take ten seconds to parse.
PACKAGES = ("scipy", "sklearn", "torch", "sqlalchemy", "numpy", "pandas", "mlflow", "matplotlib")

# Areas without a subject, vendored, or absent from newer versions of Python.
_SKIPPED_AREAS = {"test", "tests", "testing", "externals", "vendored", "utils", "util", "compat", "distutils"}

_MIN_WORDS, _MAX_CHARACTERS = 4, 300
_MAX_AREAS, _MIN_AREAS, _MIN_TRAIN_ROWS = 8, 3, 25
_MAX_ROWS: dict[Split, int] = {"train": 500, "validation": 120, "test": 200}
_SPLIT_PERCENTILES: dict[Split, int] = {"train": 60, "validation": 75, "test": 100}  # percent of all texts, by hash

Row = tuple[str, str]


def package_docstrings(package: str) -> list[Row]:
    """Return the docstring summaries of an installed package's public functions, classes and methods.

    Args:
        package: Name of an installed top-level package.

    Returns:
        Pairs (text, area), ordered by the text's hash. The text is the docstring's first paragraph, of at least four
        words; a text that several areas share is dropped.

    Raises:
        DataError: No such package is installed.
    """
    areas: dict[str, set[str]] = defaultdict(set)
    for file, area in _sources(package):
        for text in map(_summary, _public_docstrings(file)):
            if len(text.split()) >= _MIN_WORDS:
                areas[text].add(area)
    return sorted(
        ((text, min(areas_of_text)) for text, areas_of_text in areas.items() if len(areas_of_text) == 1), key=_rank
    )


def write_demo_stream(folder: Path, *, packages: Sequence[str] = PACKAGES) -> Path:
    """Write a stream file and JSON lines with one classification task per usable installed package.

    A package is usable if three areas have at least 25 train rows; its eight largest areas are taken. The same
    installed versions always give the same files.

    Args:
        folder: Created if missing.
        packages: Names of top-level packages; those that are not installed or not usable are left out.

    Returns:
        The path of the stream file.

    Raises:
        DataError: Fewer than two of `packages` are installed and usable.
    """
    splits_by_package = {package: _task_rows(package) for package in packages if _folders(package)}
    usable = {package: splits for package, splits in splits_by_package.items() if splits}
    if len(usable) < 2:
        raise DataError(
            f"the demo needs two installed packages with docstrings in {_MIN_AREAS} areas; usable of "
            f"{', '.join(packages) or 'none given'}: {', '.join(usable) or 'none'}; name other packages"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for package, splits in usable.items():
        for split, rows in splits.items():
            lines = [json.dumps({"text": text, "label": area}) + "\n" for text, area in rows]
            (folder / f"{package}.{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump(_stream(list(usable)), sort_keys=False), encoding="utf-8")
    return path


def _stream(packages: Sequence[str]) -> dict[str, object]:
    def task(package: str) -> dict[str, object]:
        files = {split: f"{package}.{split}.jsonl" for split in SPLITS}
        source = {"path": "json", "data_files": files}
        return {"name": package, "kind": "classification", "source": source, "text": "text", "label": "label"}

    return {
        "name": "demo",
        "backbone": "minilm",
        "seed": 0,
        "method": {"name": "lora", "rank": 8},
        "warm_start": "auto",
        "measure_gain": True,
        "budget": {"epochs": 3, "batch_size": 32, "learning_rate": 2.0e-3, "max_length": 64},
        "tasks": [task(package) for package in packages],
    }


def _task_rows(package: str) -> dict[Split, list[Row]]:
    """Return rows by split, every area equally capped; an empty dict if too few areas have enough rows."""
    by_area: dict[str, dict[Split, list[Row]]] = defaultdict(lambda: {split: [] for split in SPLITS})
    for row in package_docstrings(package):
        by_area[row[1]][_split(row)].append(row)
    large_areas = [area for area in by_area.values() if len(area["train"]) >= _MIN_TRAIN_ROWS]
    largest_areas = sorted(large_areas, key=lambda area: len(area["train"]), reverse=True)[:_MAX_AREAS]
    if len(largest_areas) < _MIN_AREAS:
        return {}
    return {split: _take_evenly([area[split] for area in largest_areas], _MAX_ROWS[split]) for split in SPLITS}


def _take_evenly(areas: Sequence[Sequence[Row]], total: int) -> list[Row]:
    """Return at most `total` rows, larger areas cut first; ordered by hash, so that labels are mixed."""
    by_height = sorted((row for area in areas for row in enumerate(area)), key=lambda row: (row[0], _rank(row[1])))
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


def _sources(package: str) -> Iterator[tuple[Path, str]]:
    folders = _folders(package)
    if not folders:
        raise DataError(f"no package {package!r} is installed; name an installed top-level package, as in 'numpy'")
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            inner = file.relative_to(folder).parts[:-1]
            if inner and not inner[0].startswith("_") and not _SKIPPED_AREAS.intersection(inner):
                yield file, inner[0]


def _public_docstrings(file: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):  # templates that only look like Python
        return
    yield from _walk_public(tree)


def _walk_public(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if child.name.startswith("_"):
                continue
            yield ast.get_docstring(child) or ""
        if isinstance(child, ast.ClassDef | ast.If | ast.Try):
            yield from _walk_public(child)


def _summary(docstring: str) -> str:
    return " ".join(docstring.partition("\n\n")[0].split())[:_MAX_CHARACTERS].rstrip()
