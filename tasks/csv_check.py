"""Strict check of CSV files, because the parser of `datasets` silently shifts columns at extra fields."""

import csv
import gzip
import sys
from pathlib import Path

from tasks.errors import DataError

csv.field_size_limit(sys.maxsize)  # a text may be of any length


def read_csv_header(file: str, location: str) -> list[str]:
    """Check that every row of a CSV file has as many fields as its header, and return the header.

    Args:
        file: Path of the file; gzip if it ends in `.gz`.
        location: Task and split, for messages.

    Returns:
        The column names.

    Raises:
        DataError: A row has another number of fields (the line is named), or the file is empty or not UTF-8.
    """
    open_file = gzip.open if file.endswith(".gz") else open
    try:
        with open_file(Path(file), "rt", encoding="utf-8-sig", newline="") as lines:
            rows = csv.reader(lines)
            names = next(rows, [])
            if not names:
                raise DataError(f"{location}: {file} is empty; its first line should name the columns")
            for row in rows:
                if row and len(row) != len(names):
                    raise DataError(
                        f"{location}: {file}, line {rows.line_num}: {len(row)} fields for the {len(names)} columns "
                        f"{', '.join(names)}; put quotes around a text that holds a comma"
                    )
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{location}: {file} cannot be read as CSV in UTF-8: {error}; save it as such") from error
    return names
