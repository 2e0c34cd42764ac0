"""Specs of tasks whose rows are given in Python: tables in memory, or paths of files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tasks.errors import DataError, InputError
from tasks.file_formats import SOURCE_ARGUMENTS
from tasks.memory import TABLES, MemoryRows, is_table
from tasks.source_spec import SPLITS, Source, Split
from tasks.spec import TaskSpec
from tasks.validation_messages import key_hint, keyword_message

ALLOWED = f"{TABLES}, the path of a file ({', '.join(SOURCE_ARGUMENTS)}), or a datasets.DatasetDict of splits"
SETTINGS = tuple(name for name in TaskSpec.model_fields if name not in ("name", "source"))


def task_from_rows(name: str, data: Any, *, validation: Any = None, test: Any = None, **settings: Any) -> TaskSpec:
    """Return the spec of a task whose rows are a frame, a `datasets.Dataset`, a list or a file.

    Rows in memory stay where they are, and are read when the task is loaded; the registry stores their digests and
    numbers, as of files. What reads the rows of a learned task again needs a file.

    >>> rows = [{"text": "my card is lost", "label": "lost"}, {"text": "a card, please", "label": "order"}]
    >>> spec = task_from_rows("cards", rows, text="text", label="label")
    >>> spec.metric, spec.source.model_dump(exclude_defaults=True)
    ('accuracy', {'path': 'memory'})

    Args:
        name: The task's name.
        data: The train rows: a pandas DataFrame, a `datasets.Dataset`, a list of mappings, or the path of a CSV, TSV,
            JSON or Parquet file; or a `datasets.DatasetDict` with the splits `train`, `validation` and `test`.
        validation: Validation rows, of the same types; without them they are carved from train.
        test: Test rows, likewise.
        settings: Fields of `TaskSpec`, such as `text`, `label`, `kind` or `budget`.

    Raises:
        DataError: The rows are of another type.
        InputError: A setting is unknown or not allowed, or missing.
    """
    if unknown := settings.keys() - SETTINGS:
        key = min(unknown)
        allowed = ", ".join(("validation", "test", *SETTINGS))
        raise InputError(f"task {name!r}: unknown keyword {key!r}; {key_hint(key, SETTINGS)}allowed: {allowed}")
    source = _source(name, _splits(name, data, validation=validation, test=test))
    try:
        return TaskSpec(name=name, source=source, **settings)
    except ValidationError as error:
        raise InputError(keyword_message(error, TaskSpec, of=f"task {name!r}")) from error


def _splits(task: str, data: Any, **held_out: Any) -> dict[Split, Any]:
    """Return what was given for each split."""
    tables = dict(data) if isinstance(data, Mapping) else {"train": data}
    if unknown := [str(key) for key in tables if key not in SPLITS]:
        raise DataError(
            f"task {task!r}: {', '.join(map(repr, unknown))} of the {type(data).__name__} would never be read; allowed "
            f"are {', '.join(SPLITS)}; drop it, or give it as validation= or test="
        )
    for split, table in held_out.items():
        if table is not None and split in tables:
            raise DataError(f"task {task!r}: {split} is given twice, also in the {type(data).__name__}; give one")
    tables |= {split: table for split, table in held_out.items() if table is not None}
    if "train" not in tables:
        raise DataError(f"task {task!r}: there is no train split, only {', '.join(tables) or 'nothing'}; give one")
    return {split: tables[split] for split in SPLITS if split in tables}


def _source(task: str, splits: Mapping[Split, Any]) -> Source:
    for split, rows in splits.items():
        if not (isinstance(rows, str | Path) or is_table(rows)):
            raise DataError(f"task {task!r}, {split}: {rows!r:.80} is of type {type(rows).__name__}; give {ALLOWED}")
    files = {split: Path(rows) for split, rows in splits.items() if isinstance(rows, str | Path)}
    if not files:
        return Source.from_tables({split: MemoryRows(rows) for split, rows in splits.items()})
    if tables := splits.keys() - files.keys():
        raise DataError(
            f"task {task!r}: a file is given for {', '.join(sorted(files))}, and a table in memory for "
            f"{', '.join(sorted(tables))}; give files for all splits, or tables"
        )
    for split, file in files.items():
        if file.suffix.lower() not in SOURCE_ARGUMENTS:
            raise DataError(
                f"task {task!r}, {split}: {str(file)!r} has none of the suffixes {', '.join(SOURCE_ARGUMENTS)}; rename "
                "it, or give a TaskSpec with source={'path': …, 'data_files': …}, which reads other files, "
                "folders and the hub"
            )
    builders = [SOURCE_ARGUMENTS[file.suffix.lower()] for file in files.values()]
    if any(builder != builders[0] for builder in builders):
        raise DataError(
            f"task {task!r}: {', '.join(map(str, files.values()))} are of different formats; give all splits in one"
        )
    return Source(**builders[0], data_files={split: str(file) for split, file in files.items()})
