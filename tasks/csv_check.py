"""Strict check of CSV files: the parser of `datasets` shifts columns and joins rows silently."""

from __future__ import annotations

import csv
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from tasks.errors import DataError

csv.field_size_limit(sys.maxsize)  # a text may be of any length
SEPARATORS = {"\t": "a tab", ";": "a semicolon", "|": "a bar"}
_DIALECT_OPTIONS = ("quotechar", "quoting", "escapechar", "doublequote", "skipinitialspace")


def read_csv_header(lines: Iterator[str], *, file: str, location: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Check that quotes are closed and that every row has as many fields as there are columns.

    Args:
        lines: The file's lines, with their ends.
        file: The file's name, for messages.
        location: Task and split, for messages.
        options: Arguments of the reader of `datasets`, such as `sep` and `skiprows`.

    Returns:
        The column names as the header writes them: a name may be empty, or occur twice.

    Raises:
        DataError: A quote is not closed, a row has another number of fields (file and line are named), or the file is
            empty.
    """
    skipped = int(options.get("skiprows", 0))
    separator = options.get("delimiter") or options.get("sep", ",")
    dialect = {key: options[key] for key in _DIALECT_OPTIONS if key in options}
    rows = csv.reader(islice(lines, skipped, None), delimiter=separator, strict=True, **dialect)
    names, line = options.get("names") or options.get("column_names"), skipped + 1
    before_header = int(options.get("header", 0))
    try:
        for row in rows:
            first_line, line = line, skipped + rows.line_num + 1
            if not row or (len(row) == 1 and not row[0].strip()):
                continue  # the reader skips blank lines
            if names is None:
                names = row if before_header == 0 else None
                before_header -= 1
            elif len(row) != len(names):
                raise DataError(
                    f"{location}: {file}, line {first_line}: {len(row)} fields for the {len(names)} columns "
                    f"{', '.join(names)}; {separator_hint(names) or _fields_advice(row, names, separator)}"
                )
    except csv.Error as error:
        raise DataError(f"{location}: {file}, line {line}: {_explain(error, skipped + rows.line_num)}") from error
    if not names:
        raise DataError(f"{location}: {file} is empty; its first line should name the columns")
    return tuple(names)


def separator_hint(names: Collection[str], wanted: Sequence[str] = ()) -> str:
    """Return advice to set `sep` where the only column holds several names, or an empty string.

    >>> separator_hint(["text;label"])
    'the fields seem to be separated by a semicolon: add sep: ";" to the source'
    """
    if len(names) != 1:
        return ""
    (name,) = names
    for separator, description in SEPARATORS.items():
        fields = [field.strip(' "') for field in name.split(separator)]
        if len(fields) > 1 and all(field in fields for field in wanted):
            written = separator.replace("\t", "\\t")
            return f'the fields seem to be separated by {description}: add sep: "{written}" to the source'
    return ""


def _fields_advice(row: Sequence[str], names: Sequence[str], separator: str) -> str:
    if len(row) == len(names) + 1 and not row[-1]:
        return "drop the separator at the end of the line, or end the header with one"
    name = {",": "comma"} | {key: value.removeprefix("a ") for key, value in SEPARATORS.items()}
    return f"put quotes around a text that holds a {name.get(separator, repr(separator))}"


def _explain(error: csv.Error, last_line: int) -> str:
    if "expected after" in str(error):
        return (
            f"a quoted field that begins here closes on line {last_line} before its end; close the quote, double a "
            'quote inside a text (""), or add escapechar: "\\\\" to the source if backslashes escape them, or '
            "quoting: 3 if quotes are plain characters"
        )
    if "unexpected end of data" in str(error):
        return "a quoted field that begins here is never closed; close it, or add quoting: 3 to the source"
    return f"{error}; correct the line"
