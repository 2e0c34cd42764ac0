"""A corpus of thousands of small real tasks that every machine can make: modules, and what their docstrings say.

    python -m tests.benchmarks.docstring_modules FOLDER

installs the packages of `docstring_packages.txt` into FOLDER, without their dependencies and without importing them,
and prints the number of tasks, rows and classes, and a digest of the corpus. A task is one module of these packages or
of the standard library; its rows are the sentences of its docstrings, labelled by their role, as in `continual demo`. A
sentence of several modules is dropped, since no router could tell whose it is. The digest is fixed for a release of
Python, whose modules are among them.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.docstring_corpus import Row, module_rows

PACKAGES = Path(__file__).with_name("docstring_packages.txt")
SKIPPED = {"test", "tests", "testing", "site-packages", "dist-packages", "__pycache__"}
MIN_ROWS, MAX_ROWS, MIN_CLASS_ROWS, MIN_CLASSES = 60, 80, 5, 2
SHARES = (0.6, 0.75)  # train rows, train and validation rows
DIGESTS = {(3, 11, 7): "6d2b41631b41803490fb43200cbc5141a20cc5dffdedb32519170b37de673355"}  # by release of Python


@dataclass(frozen=True)
class ModuleTask:
    """A module's sentences by split, as pairs (text, role)."""

    name: str
    train: Sequence[Row]
    validation: Sequence[Row]
    test: Sequence[Row]

    @property
    def splits(self) -> tuple[Sequence[Row], Sequence[Row], Sequence[Row]]:
        """Train, validation and test rows."""
        return self.train, self.validation, self.test

    @property
    def rows(self) -> list[Row]:
        """The rows of all splits."""
        return [row for split in self.splits for row in split]


def install_packages(folder: Path) -> None:
    """Install the packages of the corpus into a folder, unless they are there."""
    done = folder / "installed.txt"
    if not done.exists() or done.read_text() != PACKAGES.read_text():
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-compile",
            "--target",
            str(folder),
        ]
        subprocess.run([*command, "--requirement", str(PACKAGES)], check=True, stdout=sys.stderr)
        done.write_text(PACKAGES.read_text())


def module_tasks(folder: Path) -> list[ModuleTask]:
    """Return the tasks of the packages in a folder and of the standard library; they are kept in a file of the folder.

    Returns:
        Tasks of at least 60 rows and two roles, in the order of a hash of their names: the first ones of it are a
        sample of all.
    """
    kept = folder / "tasks.json"
    if kept.exists():
        return [ModuleTask(name, *rows) for name, *rows in json.loads(kept.read_text())]
    rows_by_module = {name: rows for name, file in _modules(folder) if len(rows := module_rows(file)) >= MIN_ROWS}
    occurrences = Counter(text.casefold() for rows in rows_by_module.values() for text, _ in rows)
    tasks = []
    for name in sorted(rows_by_module, key=_hash):
        rows = _balanced([row for row in rows_by_module[name] if occurrences[row[0].casefold()] == 1])
        if len(rows) >= MIN_ROWS:
            first, second = (round(share * len(rows)) for share in SHARES)
            tasks.append(ModuleTask(name, rows[:first], rows[first:second], rows[second:]))
    kept.write_text(json.dumps([[task.name, task.train, task.validation, task.test] for task in tasks]))
    return tasks


def corpus_digest(tasks: Sequence[ModuleTask]) -> str:
    """Return a digest of all names and rows."""
    digest = hashlib.sha256()
    for task in tasks:
        digest.update(json.dumps([task.name, task.train, task.validation, task.test]).encode())
    return digest.hexdigest()


def _modules(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the dotted name and the file of each module."""
    for root in (folder, Path(sysconfig.get_path("stdlib"))):
        for file in sorted(root.rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            if not SKIPPED.intersection(parts) and not parts[-1].startswith("test_"):
                yield ".".join(parts), file


def _balanced(rows: Sequence[Row]) -> list[Row]:
    """Return at most MAX_ROWS rows of the classes that have enough, in an order that mixes classes evenly."""
    by_class: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: _hash(row[0])):
        by_class[row[1]].append(row)
    frequent = [of_class for of_class in by_class.values() if len(of_class) >= MIN_CLASS_ROWS]
    if len(frequent) < MIN_CLASSES:
        return []
    ranked = sorted((i, _hash(row[0]), row) for of_class in frequent for i, row in enumerate(of_class))[:MAX_ROWS]
    by_class.clear()
    for _, _, row in ranked:
        by_class[row[1]].append(row)
    return [row for _, _, row in sorted(_spread(by_class))]


def _spread(by_class: dict[str, list[Row]]) -> Iterator[tuple[float, str, Row]]:
    """Yield the rows with places in [0, 1) that spread each class evenly, so that every split has all classes."""
    for of_class in by_class.values():
        for i, row in enumerate(of_class):
            yield (i + 0.5) / len(of_class), _hash(row[0]), row


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def main() -> None:
    """Print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    install_packages(folder)
    tasks = module_tasks(folder)
    digest, expected = corpus_digest(tasks), DIGESTS.get(sys.version_info[:3])
    document = {
        "tasks": len(tasks),
        "rows": sum(len(task.rows) for task in tasks),
        "classes": sum(len({role for _, role in task.rows}) for task in tasks),
        "packages": dict(Counter(task.name.split(".")[0] for task in tasks).most_common()),
        "digest": digest,
        "digest_is_expected": digest == expected if expected else None,
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
