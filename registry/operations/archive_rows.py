"""The rows of an archive, checked before any is written: columns, types, keys, references and counts.

Memory is bounded by the longest line and 8 bytes for each row that others may refer to.
"""

import io
import json
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from zipfile import ZipFile

from sqlalchemy import Column, Table

from registry.errors import ArchiveError
from registry.operations.archive import MAX_LINE_BYTES, Manifest, table_entry
from registry.redaction import quote

MAX_INTEGER = 2**63  # exclusive; what a database stores in 8 bytes
Row = dict[str, Any]


def check_rows(archive: ZipFile, manifest: Manifest, tables: Sequence[Table]) -> None:
    """Check all rows against the tables that the manifest's revision has, each after those it references.

    Raises:
        ArchiveError: Names the member and the line of the first row that does not fit, or the tables or counts that the
            manifest has wrong.
    """
    names = {table.name for table in tables}
    if names != manifest.tables.keys():
        raise ArchiveError(
            f"{archive.filename} has tables {sorted(manifest.tables)}, and revision {manifest.revision} has "
            f"{sorted(names)}. Take another copy of it."
        )
    ids: dict[str, array[int]] = {}
    for table in tables:
        ids[table.name] = _check_keys(archive, table, ids)
        if (count := len(ids[table.name])) != (expected := manifest.tables[table.name].rows):
            raise ArchiveError(
                f"{archive.filename} could not be restored: {table_entry(table.name)} has {count} rows, and the "
                f"manifest says {expected}. Nothing was written. Take another copy of it."
            )


def iter_rows(archive: ZipFile, table: Table) -> Iterator[Row]:
    """Yield the rows of a table, their columns and types checked, with times as such.

    Raises:
        ArchiveError: A line is no row of the table.
    """
    for number, line in _lines(archive, table.name):
        try:
            yield _parse_row(line, table)
        except (ValueError, RecursionError) as error:
            raise _row_error(archive, table.name, number, error) from error


def _check_keys(archive: ZipFile, table: Table, ids: Mapping[str, "array[int]"]) -> "array[int]":
    """Check that the ids of a table ascend, as they are dumped, and that its references exist; return the ids."""
    references = {key.parent.name: key.column.table.name for key in table.foreign_keys}
    row_ids: array[int] = array("q")
    for number, row in enumerate(iter_rows(archive, table), start=1):
        if row_ids and row["id"] <= row_ids[-1]:
            reason = (
                f"its id {row['id']} is there already" if _contains(row_ids, row["id"]) else "its id is out of order"
            )
            raise _row_error(archive, table.name, number, reason)
        row_ids.append(row["id"])
        for column, target in references.items():
            if row[column] is not None and not _contains(ids[target], row[column]):
                raise _row_error(archive, table.name, number, f"its {column} {row[column]} is no row of {target}")
    return row_ids


def _contains(ids: "array[int]", number: int) -> bool:
    place = bisect_left(ids, number)
    return place < len(ids) and ids[place] == number


def _lines(archive: ZipFile, table: str) -> Iterator[tuple[int, bytes]]:
    with archive.open(table_entry(table)) as entry:
        reader = io.BufferedReader(entry)  # type: ignore[type-var]  # it needs `readinto` alone
        number = 0
        while line := reader.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise _row_error(archive, table, number, f"it has more than {MAX_LINE_BYTES:,} bytes")
            yield number, line


def _parse_row(line: bytes, table: Table) -> Row:
    """Return the row; raise ValueError with the reason where the line is none."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"it is of type {type(row).__name__}, not an object")
    expected = set(table.columns.keys())
    if wrong := sorted(row.keys() ^ expected):
        relation = "lacks" if wrong[0] in expected else "has besides"
        raise ValueError(
            f"a row of {table.name} has {', '.join(sorted(expected))}; this one {relation} {quote(wrong[0])}"
        )
    return {name: _parse_value(column, row[name]) for name, column in table.columns.items()}


def _parse_value(column: Column[Any], value: Any) -> Any:
    if value is None:
        if not column.nullable:
            raise ValueError(f"its {column.name} is null")
        return None
    parse = _PARSERS.get(column.type.python_type)
    try:
        return parse(value) if parse else value
    except ValueError as error:
        raise ValueError(f"its {column.name} {quote(str(value))} is {error}") from error


def _parse_integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= MAX_INTEGER:
        raise ValueError("no integer of 8 bytes")
    return value


def _parse_float(value: Any) -> float:
    return value if isinstance(value, float) else _parse_integer(value)


def _parse_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("no text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("no text: it holds half a surrogate pair") from None
    return value


def _parse_time(value: Any) -> datetime:
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError("an invalid time") from None


# By the type of a column's values; any JSON fits the others.
_PARSERS: dict[type, Callable[[Any], Any]] = {
    int: _parse_integer,
    float: _parse_float,
    str: _parse_text,
    datetime: _parse_time,
}


def _row_error(archive: ZipFile, table: str, number: int, reason: object) -> ArchiveError:
    return ArchiveError(
        f"{archive.filename} could not be restored: {table_entry(table)}, line {number} of {table} is no row: "
        f"{reason}. Nothing was written. Take another copy of it."
    )
