"""Data files grouped into tasks: one for each file, or one for the files of its splits."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from tasks.csv_check import SEPARATORS
from tasks.errors import InputError
from tasks.file_formats import SOURCE_ARGUMENTS
from tasks.source_spec import SPLITS, Source, Split

VALIDATION_NAMES = ("validation", "valid", "val", "dev")
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "test": "test",
    **dict.fromkeys(VALIDATION_NAMES, "validation"),
}
MAX_NAME_LENGTH = 60  # characters of a task's name that is made from a file's
_SPLIT_FILE = re.compile(rf"(?:(?P<prefix>.*?)[._-])?(?P<split>{'|'.join(SPLIT_NAMES)})", re.IGNORECASE)


@dataclass(frozen=True)
class FileGroup:
    """The files of one task.

    Attributes:
        name: The task's name.
        files: The files of each split.
        reason: Where the name comes from.
    """

    name: str
    files: dict[Split, tuple[Path, ...]]
    reason: str

    def source(self, folder: Path) -> Source:
        """Return the files as the source of a task, relative to the folder of its stream file."""
        first = self.files["train"][0]
        paths = {
            split: [Path(os.path.relpath(file.absolute(), folder.absolute())).as_posix() for file in files]
            for split, files in self.files.items()
        }
        data_files: dict[str, str | list[str]] = {
            split: names[0] if len(names) == 1 else names for split, names in paths.items()
        }
        arguments = dict(SOURCE_ARGUMENTS[first.suffix.lower()])
        if first.suffix.lower() == ".csv":
            arguments["sep"] = _separator(first)
        return Source(**arguments, data_files=data_files)


def group_files(paths: Sequence[Path]) -> tuple[FileGroup, ...]:
    """Return the tasks of files and folders, with distinct names.

    A folder stands for the data files in it. Files called train, validation and test, or with such an end to their
    name (`mood.train.csv`), are splits of one task.

    Raises:
        InputError: A path is neither a file nor a folder, a file has another format, or a folder has no data file.
    """
    sets: dict[tuple[Path, str | None, str], list[tuple[Split, Path]]] = defaultdict(list)
    for file in dict.fromkeys(file for path in paths for file in _data_files(path)):
        match = _SPLIT_FILE.fullmatch(file.stem)
        if match:
            key = (file.parent, match["prefix"] or "", file.suffix.lower())
            sets[key].append((SPLIT_NAMES[match["split"].lower()], file))
        else:
            sets[file, None, ""].append(("train", file))
    groups: list[FileGroup] = []
    for (folder, prefix, _), members in sets.items():
        for name, reason, files in _tasks_of(folder, prefix, members):
            groups.append(_named(name, reason, files, [group.name for group in groups]))
    return tuple(groups)


def task_name(text: str) -> str:
    """Return a valid name of a task made from the name of a file, or an empty string.

    >>> task_name("Größe & Preis (2026)"), task_name("数据")
    ('Groe-Preis-2026', '')
    """
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_.]+", "-", ascii_text).strip("-_.")[:MAX_NAME_LENGTH].rstrip("-_.")


def _tasks_of(
    folder: Path, prefix: str | None, members: Sequence[tuple[Split, Path]]
) -> Iterator[tuple[str, str, dict[Split, tuple[Path, ...]]]]:
    """Yield a name, its reason and the files of each task that a set of files makes."""
    if prefix is not None and any(split == "train" for split, _ in members):
        files = {split: tuple(file for of, file in members if of == split) for split in SPLITS}
        name, reason = (prefix, "files") if prefix else (folder.absolute().name, "folder")
        yield name, f"the name of its {reason}", {split: paths for split, paths in files.items() if paths}
        return
    for _, file in members:
        yield file.stem, "the name of its file", {"train": (file,)}


def _named(name: str, reason: str, files: dict[Split, tuple[Path, ...]], taken: Sequence[str]) -> FileGroup:
    """Return the group with a valid name that is not taken."""
    plain = task_name(name) or "task"
    candidates = chain([plain], (f"{plain}-{number}" for number in count(2)))
    valid = next(candidate for candidate in candidates if candidate not in taken)
    if valid != name:
        reason += ", written with letters that names may have" if plain != name else ""
        reason += f", numbered since {plain} is another task" if valid != plain else ""
    return FileGroup(valid, files, reason)


def _data_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SOURCE_ARGUMENTS and file.is_file())
        if not files:
            raise InputError(
                f"{path} has no data file; allowed are {', '.join(SOURCE_ARGUMENTS)}; give files, or another folder"
            )
        return files
    if not path.is_file():
        raise InputError(f"{path} is neither a file nor a folder; correct the path")
    if path.suffix.lower() not in SOURCE_ARGUMENTS:
        raise InputError(
            f"{path}: the suffix {path.suffix!r} is no format; allowed are {', '.join(SOURCE_ARGUMENTS)}; convert or "
            "rename it"
        )
    return [path]


def _separator(file: Path) -> str | None:
    """Return the separator that the header shows, where it is not the comma."""
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        header = next((line for line in lines if line.strip()), "")
    if len(_fields(header, ",")) > 1:
        return None
    return next((separator for separator in SEPARATORS if len(_fields(header, separator)) > 1), None)


def _fields(header: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([header], delimiter=separator), [])
    except csv.Error:  # the reader of the rows says what is wrong
        return []
