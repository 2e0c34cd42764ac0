"""A look at CSV files before a lenient parser gets them: with a field too many it shifts all columns in silence."""

import csv
import gzip
import sys
from pathlib import Path

from tasks.errors import DataError

csv.field_size_limit(sys.maxsize)  # a text may be of any length


def read_csv_header(file: str, where: str) -> list[str]:
    """The names of a CSV file's columns, each row having been seen to have as many fields.

    Raises: DataError, with the line, for a row of another length, and for a file that is empty or not UTF-8.
    """
    opened = gzip.open if file.endswith(".gz") else open
    try:
        with opened(Path(file), "rt", encoding="utf-8-sig", newline="") as lines:
            rows = csv.reader(lines)
            names = next(rows, [])
            if not names:
                raise DataError(f"{where}: {file} is empty; its first line should name the columns")
            for row in rows:
                if row and len(row) != len(names):
                    raise DataError(
                        f"{where}: {file}, line {rows.line_num}: {len(row)} fields for the {len(names)} columns "
                        f"{', '.join(names)}; put quotes around a text that holds a comma"
                    )
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{where}: {file} cannot be read as CSV in UTF-8: {error}; save it as such") from error
    return names
