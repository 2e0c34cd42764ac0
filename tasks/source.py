"""Reading rows with `datasets.load_dataset`, one split at a time, with its errors explained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from difflib import get_close_matches
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tasks.columns import DatasetTable, FileSchema, Table
from tasks.data_files import arrow_schema, content_digest, csv_schema, json_columns, open_files
from tasks.errors import DataError
from tasks.source_location import SourceLocation
from tasks.source_spec import LOCAL_BUILDERS, READER_OPTIONS, SPLITS, Source, Split

REACH_SECONDS = 5.0  # within which the hub must answer


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


def read_split(origin: SourceLocation, split: Split) -> Table:
    """Read the rows of one split.

    Raises:
        DataError: Files are missing, empty or unreadable, or the hub cannot be reached.
    """
    try:
        with _quiet_datasets() as datasets:
            if origin.source.in_memory:
                table: Table = origin.source.tables[split].table(origin.split_location(split))
            elif origin.saved:
                table = DatasetTable(_saved_rows(origin, split), origin.split_location(split))
            elif files := origin if origin.local else _folder_as_files(origin, split):
                table = _read_local(files, split)
            else:
                with _offline_if_unreachable(origin):
                    rows = datasets.load_dataset(**_hub_arguments(origin), split=origin.source.split_name(split))
                table = DatasetTable(rows, origin.split_location(split))
    except DataError:
        raise
    except Exception as error:  # builders, parsers and the network raise errors of many types
        raise _read_error(origin, split, error) from error
    if len(table) == 0:
        raise DataError(f"{origin.split_location(split)}: the split is empty; give it at least one row")
    return table


def _split_names(origin: SourceLocation) -> Sequence[str]:
    if origin.source.in_memory:
        if not origin.source.tables:
            raise DataError(
                f"task {origin.task!r}: its rows were given from the memory of a Python process, and are stored "
                f"nowhere; give them again, as in learner.learn({origin.task!r}, frame, …), or learn them from a file, "
                "which is read again when it is needed"
            )
        return list(origin.source.tables)
    if origin.source.data_files is not None:
        return list(origin.source.data_files)
    try:
        with _quiet_datasets() as datasets:
            if origin.saved:
                return list(_saved_splits(origin))
            if origin.local:
                return list(_folder_files(origin))
            arguments = _hub_arguments(origin)
            with _offline_if_unreachable(origin):
                return list(datasets.get_dataset_split_names(arguments.pop("path"), arguments.pop("name"), **arguments))
    except DataError:
        raise
    except Exception as error:
        raise _read_error(origin, "train", error) from error


def _folder_as_files(origin: SourceLocation, split: Split) -> SourceLocation | None:
    """Return a folder's files of a split as a source; None if `datasets` must read the folder itself."""
    if not origin.is_folder:
        return None
    import datasets

    builder = datasets.load_dataset_builder(**_hub_arguments(origin))
    path, config = type(builder).__module__.rpartition(".")[2], builder.config
    name = origin.source.split_name(split).partition("[")[0]
    files = (config.data_files or {}).get(name)
    if path not in LOCAL_BUILDERS or not files or builder.info.features is not None:
        return None
    defaults = type(config)()
    options = {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if field.name not in {"name", "version", "data_dir", "data_files", "description"}
        and getattr(config, field.name) != getattr(defaults, field.name)
    }
    try:
        source = Source(path=path, data_files={name: list(files)}, splits=origin.source.splits, **options)
    except ValidationError:  # an option of the folder's README.md that a source does not have
        return None
    return replace(origin, source=source)


def _require_hub_id(origin: SourceLocation) -> None:
    """Raise DataError for a path that is no builder and no folder, and that no dataset of the hub can have as its id.

    The hub's client would try for a minute to reach it.
    """
    from datasets import packaged_modules
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented there

    path = origin.source.path
    try:
        validate_repo_id(path)
    except HFValidationError:
        builders = [*packaged_modules._PACKAGED_DATASETS_MODULES]
        near = get_close_matches(path, builders, n=3) or LOCAL_BUILDERS
        raise DataError(
            f"task {origin.task!r}: path {path!r} is no builder of `datasets`, no folder at {origin.folder} and no id "
            f"of a dataset on the hub (NAME or OWNER/NAME, of letters, digits, '-', '_' and '.'); correct it, or use "
            f"one of: {', '.join(near)}"
        ) from None


def _hub_arguments(origin: SourceLocation) -> dict[str, Any]:
    source = origin.source
    data_files: Any = source.data_files
    data_dir, path = source.data_dir, source.path
    if origin.is_folder:
        path = origin.resolve_path(source.path)
    elif origin.packaged:
        data_dir = origin.resolve_path(data_dir) if data_dir else None
        data_files = data_files and {name: _resolve_paths(origin, files) for name, files in data_files.items()}
    else:
        _require_hub_id(origin)
    optional = {"data_dir": data_dir, "revision": source.revision, "data_files": data_files}
    return {"path": path, "name": source.name} | {key: value for key, value in optional.items() if value is not None}


def _saved_splits(origin: SourceLocation) -> Mapping[str, Any]:
    """Return the splits of a folder written by `save_to_disk`."""
    import datasets

    saved = datasets.load_from_disk(origin.resolve_path(origin.source.path))
    return (
        {str(name): rows for name, rows in saved.items()}
        if isinstance(saved, datasets.DatasetDict)
        else {str(saved.split or "train"): saved}
    )


def _saved_rows(origin: SourceLocation, split: Split) -> Any:
    name = origin.source.split_name(split)
    rows = _saved_splits(origin)[name.partition("[")[0]]
    return rows.select(_slice_indices(name, len(rows)))


def _slice_indices(name: str, size: int) -> list[int]:
    """Return the rows that a split's name selects, such as the first of `train[:50%]`, out of `size`."""
    from datasets import ReadInstruction

    parts = ReadInstruction.from_spec(name).to_absolute({name.partition("[")[0]: size})
    return [row for part in parts for row in range(part.from_ or 0, size if part.to is None else part.to)]


def _read_local(origin: SourceLocation, split: Split) -> DatasetTable:
    import datasets

    source, location, options = origin.source, origin.split_location(split), dict(origin.source.options)
    split_name = source.split_name(split)
    file_names = _split_files(origin, split)
    files = open_files(file_names)
    arguments: dict[str, Any] = {}
    schemas: tuple[FileSchema, ...] = ()
    if source.path == "csv":
        # Every field is read as a string: "NA" and "null" are not missing values, and 007 is not 7.
        options["keep_default_na"] = False
        schemas = tuple(csv_schema(file, location, options) for file in files)
        arguments["features"] = datasets.Features(
            {name: datasets.Value("string") for name in _common_columns(schemas, location)}
        )
    elif source.path in ("parquet", "arrow"):
        schemas = tuple(arrow_schema(file, source.path) for file in files)
        columns = _common_columns(schemas, location)
        if source.path == "parquet" and any(set(schema.names) > set(columns) for schema in schemas):
            arguments["columns"] = columns
    # The cache of `datasets` identifies a local file by path and modification time, which a copy or a checkout can
    # repeat for other content. A configuration name made from the content keeps them apart.
    arguments["name"] = f"{source.name or 'rows'}-{content_digest(files)}"
    arguments["data_files"] = {split_name.partition("[")[0]: file_names}
    try:
        rows = datasets.load_dataset(source.path, split=split_name, **arguments, **options)
    except datasets.exceptions.DatasetGenerationError as error:
        # Arrow takes texts for dates until a later part of the split has other texts.
        is_date_error = source.path == "json" and "timestamp" in str(error.__cause__)
        columns_as_written = json_columns(files, options) if is_date_error else None
        if columns_as_written is None:
            raise
        all_rows = datasets.Dataset.from_dict(columns_as_written)
        rows = all_rows.select(_slice_indices(split_name, len(all_rows)))

    def originals(column: str) -> list[Any] | None:
        columns = json_columns(files, options) if source.path == "json" else None
        values = (columns or {}).get(column, [])
        selected = [values[row] for row in _slice_indices(split_name, len(values))] if values else []
        return selected if len(selected) == len(rows) else None

    return DatasetTable(rows, location, schemas, originals)


def _common_columns(schemas: Sequence[FileSchema], location: str) -> list[str]:
    """Return the columns that every file has, once if it has types."""
    common = [
        name
        for name in schemas[0].names
        if all(name in schema.names and schema.names.count(name) == 1 for schema in schemas)
    ]
    if not common:
        listed = "; ".join(f"{schema.file} has {', '.join(schema.names)}" for schema in schemas[:3])
        raise DataError(f"{location}: the files of a split have no column in common: {listed}")
    return common


def _split_files(origin: SourceLocation, split: Split) -> list[str]:
    source_split = origin.source.split_name(split).partition("[")[0]
    if origin.source.data_files is not None:
        return _resolve_files(origin, split, origin.source.data_files[source_split])
    return _resolve_files(origin, split, _folder_files(origin)[source_split])


def _folder_files(origin: SourceLocation) -> dict[str, list[str]]:
    """Return the files of `data_dir` by split, as the builder finds them, without those of other formats."""
    import datasets
    from datasets import packaged_modules

    builder = origin.source.path
    folder = origin.resolve_path(origin.source.data_dir or ".")
    if has_magic(folder):
        raise DataError(f"task {origin.task!r}: {folder} would be read as a pattern; rename it without * ? [ ]")
    by_split = datasets.load_dataset_builder(builder, data_dir=folder).config.data_files or {}
    extensions = set(getattr(packaged_modules, "_MODULE_TO_EXTENSIONS", {}).get(builder, ()))
    splits = {}
    for split, files in by_split.items():
        suitable = [file for file in files if extensions.intersection(s.lower() for s in Path(file).suffixes)]
        splits[str(split)] = [str(file) for file in suitable or files]
    return splits


def _resolve_paths(origin: SourceLocation, paths: str | list[str]) -> list[str]:
    return [origin.resolve_path(path) for path in ([paths] if isinstance(paths, str) else paths)]


def _resolve_files(origin: SourceLocation, split: Split, patterns: str | list[str]) -> list[str]:
    """Return the files with glob patterns expanded; raise DataError where none matches."""
    files: list[str] = []
    for path in _resolve_paths(origin, patterns):
        _refuse_devices(path, origin.split_location(split))
        exists = "://" in path or _is_file(path)
        if exists and has_magic(path) and "://" not in path:
            raise DataError(
                f"{origin.split_location(split)}: {path} would be read as a pattern; rename it without * ? [ ]"
            )
        if "://" in path and "*" in path:
            from datasets.data_files import resolve_pattern

            files += resolve_pattern(path, base_path="")
            continue
        matches = [path] if exists else sorted(file for file in glob(path, recursive=True) if Path(file).is_file())
        if not matches:
            raise DataError(
                f"{origin.split_location(split)}: no file {path}; correct data_files, or put the file there"
            )
        files += matches
    return files


def _refuse_devices(path: str, location: str) -> None:
    """Refuse a path or URL of a device or a pipe on this machine, alone or as an archive: reading it may never end."""
    from fsspec.implementations.local import LocalFileSystem
    from fsspec.utils import get_protocol

    archive = path.rpartition("::")[2]
    if get_protocol(archive) in LocalFileSystem.protocol:
        file = Path(LocalFileSystem._strip_protocol(archive))
        with suppress(OSError, ValueError):  # what cannot be looked at is no file, as others say
            if file.exists() and not (file.is_file() or file.is_dir()):
                raise DataError(f"{location}: {path} is a device or a pipe; give files")


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # the name is too long for the file system
        return False


def _read_error(origin: SourceLocation, split: Split, error: Exception) -> DataError:
    cause = error.__cause__ or error
    reason = " ".join(str(cause).split()) or type(cause).__name__
    if origin.local:
        encoding = (
            ", in UTF-8 (or name its encoding)," if "encoding" in READER_OPTIONS.get(origin.source.path, ()) else ""
        )
        advice = f"check that every file is {origin.source.path}{encoding} and not empty"
    else:
        advice = (
            f"a hub dataset needs the network (or an earlier download); check path {origin.source.path!r}, name and "
            f"revision, or use your own files with path: {' | '.join(LOCAL_BUILDERS)} and data_files"
        )
    return DataError(f"{origin.split_location(split)}: cannot read {origin.source.path!r}: {reason}; {advice}")


@contextmanager
def _offline_if_unreachable(origin: SourceLocation) -> Iterator[None]:
    """Use the hub's offline mode, and so an earlier download, where the hub does not answer one request.

    Its client would try again for a minute first, at every step.
    """
    import httpx
    from huggingface_hub import constants, get_session

    was_offline = constants.HF_HUB_OFFLINE
    if not (was_offline or origin.packaged or origin.is_folder):
        try:
            get_session().head(constants.ENDPOINT, timeout=REACH_SECONDS)
        except httpx.TransportError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was_offline


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
