"""Reading rows with `datasets.load_dataset`, one split at a time, with its errors explained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from tasks.csv_check import read_csv_header
from tasks.errors import DataError
from tasks.spec import LOCAL_BUILDERS, SPLITS, Source, Split


@dataclass(frozen=True)
class SourceLocation:
    """A task's source with the base folder of its relative paths.

    Attributes:
        task: The task's name, for messages.
        source: The source as specified.
        folder: Base of relative paths.
    """

    task: str
    source: Source
    folder: Path

    def split_location(self, split: Split) -> str:
        """Return the name of one of the task's splits for messages."""
        return f"task {self.task!r}, {split}"

    @property
    def local(self) -> bool:
        """True if the rows are the user's local files, read by a builder of `datasets`."""
        return self.source.path in LOCAL_BUILDERS

    def resolve_path(self, path: str) -> str:
        """Return `path` resolved against the folder; a URL is returned unchanged."""
        return path if "://" in path else str((self.folder / path).absolute())


def available_splits(origin: SourceLocation) -> tuple[Split, ...]:
    """Return which of train, validation and test the source has.

    Raises:
        DataError: The source cannot be reached, has no train split, or lacks a split that `splits` names.
    """
    source_splits = _split_names(origin)
    # A slice such as "train[:80%]" is allowed.
    names = {split: origin.source.split_name(split).partition("[")[0] for split in SPLITS}
    absent = [split for split in SPLITS if names[split] not in source_splits]
    for split in absent:
        if split == "train" or split in origin.source.splits:
            raise DataError(
                f"{origin.split_location(split)}: the source has no split {names[split]!r}; it has "
                f"{', '.join(source_splits)}; say which one to read, as in splits: "
                f"{{{split}: {next(iter(source_splits), 'NAME')}}}"
            )
    return tuple(split for split in SPLITS if split not in absent)


def read_split(origin: SourceLocation, split: Split) -> Any:
    """Read the rows of one split.

    Returns:
        A `datasets.Dataset`.

    Raises:
        DataError: Files are missing, empty or unreadable, or the hub cannot be reached.
    """
    arguments = _local_arguments(origin, split) if origin.local else _hub_arguments(origin)
    try:
        with _quiet_datasets() as datasets:
            rows = datasets.load_dataset(**arguments, split=origin.source.split_name(split))
    except Exception as error:  # builders, parsers and the network raise errors of many types
        raise _read_error(origin, split, error) from error
    if len(rows) == 0:
        raise DataError(f"{origin.split_location(split)}: the split is empty; give it at least one row")
    return rows


def _split_names(origin: SourceLocation) -> Sequence[str]:
    if origin.source.data_files is not None:
        return list(origin.source.data_files)
    arguments = _hub_arguments(origin)
    try:
        with _quiet_datasets() as datasets:
            return list(datasets.get_dataset_split_names(arguments.pop("path"), arguments.pop("name"), **arguments))
    except Exception as error:
        raise _read_error(origin, "train", error) from error


def _hub_arguments(origin: SourceLocation) -> dict[str, Any]:
    source = origin.source
    data_dir = origin.resolve_path(source.data_dir) if source.data_dir and origin.local else source.data_dir
    is_folder = not origin.local and (origin.folder / source.path).is_dir()
    path = origin.resolve_path(source.path) if is_folder else source.path
    optional = {"data_dir": data_dir, "revision": source.revision, "data_files": source.data_files}
    return {"path": path, "name": source.name} | {key: value for key, value in optional.items() if value is not None}


def _local_arguments(origin: SourceLocation, split: Split) -> dict[str, Any]:
    source = origin.source
    arguments: dict[str, Any] = {"path": source.path}
    if source.data_files is None:
        folder = origin.resolve_path(source.data_dir or ".")
        arguments["data_dir"] = folder
        files = sorted(str(path) for path in Path(folder).rglob("*") if path.is_file())
    else:
        source_split = source.split_name(split).partition("[")[0]
        files = _resolve_files(origin, split, source.data_files[source_split])
        arguments["data_files"] = {source_split: files}
    if source.path == "csv":
        from datasets import Features, Value

        # Every field is read as a string: "NA" and "null" are not missing values, and 007 is not 7.
        columns = read_csv_header(files[0], origin.split_location(split))
        for file in files[1:]:
            read_csv_header(file, origin.split_location(split))
        arguments["features"] = Features({name: Value("string") for name in columns})
        arguments["keep_default_na"] = False
    # The cache of `datasets` identifies a local file by path and modification time, which a copy or a checkout can
    # repeat for other content. A configuration name made from the content keeps them apart.
    arguments["name"] = f"{source.name or 'rows'}-{_content_digest(files)}"
    return arguments


def _resolve_files(origin: SourceLocation, split: Split, patterns: str | list[str]) -> list[str]:
    """Return the files with glob patterns expanded; raise DataError where none matches."""
    files: list[str] = []
    for path in map(origin.resolve_path, [patterns] if isinstance(patterns, str) else patterns):
        exists = "://" in path or _is_file(path)
        if exists and has_magic(path) and "://" not in path:
            raise DataError(
                f"{origin.split_location(split)}: {path} would be read as a pattern; rename it without * ? [ ]"
            )
        matches = [path] if exists else sorted(file for file in glob(path, recursive=True) if Path(file).is_file())
        if not matches:
            raise DataError(
                f"{origin.split_location(split)}: no file {path}; correct data_files, or put the file there"
            )
        files += matches
    return files


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # the name is too long for the file system
        return False


def _content_digest(files: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.encode("utf-8", "surrogateescape") + b"\0")
        if Path(file).is_file():
            with open(file, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def _read_error(origin: SourceLocation, split: Split, error: Exception) -> DataError:
    cause = error.__cause__ or error
    reason = " ".join(str(cause).split()) or type(cause).__name__
    if origin.local:
        advice = f"check that every file is {origin.source.path}, in UTF-8, and not empty"
    else:
        advice = (
            f"a hub dataset needs the network (or an earlier download); check path {origin.source.path!r}, name and "
            f"revision, or use your own files with path: {' | '.join(LOCAL_BUILDERS)} and data_files"
        )
    return DataError(f"{origin.split_location(split)}: cannot read {origin.source.path!r}: {reason}; {advice}")


@contextmanager
def _quiet_datasets() -> Iterator[Any]:
    """Import `datasets` with progress bars and logging off, and restore its settings on exit."""
    import datasets  # slow: commands that read no rows must not pay for it

    bars_disabled, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield datasets
    finally:
        datasets.logging.set_verbosity(level)
        if not bars_disabled:
            datasets.enable_progress_bars()
