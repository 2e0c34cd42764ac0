"""Inputs of `continual predict`: lines of text or JSON, as they come, and tables of CSV, TSV or Parquet."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

from continual.errors import InputLineError
from continual.inference.input_rows import ALLOWED, InputRow, frame_records, parse_row
from tasks.csv_check import read_csv_header
from tasks.errors import DataError

STANDARD_INPUT = "-"
MAX_TEXT_COLUMNS = 2
SEPARATORS = {".csv": ",", ".tsv": "\t"}
PARQUET = ".parquet"


def open_batches(
    file: str, size: int, *, text_columns: Sequence[str] = ()
) -> tuple[Iterator[list[InputRow]], int | None]:
    """Return the inputs of a file in batches, and their number; of standard input as they come, without a number.

    Args:
        file: The file's name, or - for standard input.
        size: Inputs of a batch.
        text_columns: One or two columns of a table, or keys of JSON lines, that hold the text; `text` if none is given.

    Raises:
        InputLineError: The file cannot be read, or a row is no input; of standard input, when it comes.
    """
    if len(text_columns) > MAX_TEXT_COLUMNS:
        raise InputLineError(f"--text-column is given {len(text_columns)} times; give it once, or twice for pairs")
    if file == STANDARD_INPUT:
        lines = parse_lines(sys.stdin.buffer, file=file, text_columns=text_columns)
        return _batches_as_they_come(lines, size), None
    rows = _read_file(file, text_columns)
    return (rows[start : start + size] for start in range(0, len(rows), size)), len(rows)


def _read_file(file: str, text_columns: Sequence[str]) -> list[InputRow]:
    """Return the inputs of a file: a table by its suffix .csv, .tsv or .parquet, else one input per line."""
    path = Path(file)
    try:
        if path.suffix.lower() in (*SEPARATORS, PARQUET):
            rows = enumerate(_table_rows(path), start=1)
            return [_parse(row, text_columns, where=f"{file}: row {number}") for number, row in rows]
        with path.open("rb") as lines:
            return list(parse_lines(lines, file=file, text_columns=text_columns))
    except OSError as error:
        raise InputLineError(f"{file}: cannot be read: {error.strerror or error}; check the path") from error


def parse_lines(lines: Iterable[bytes], *, file: str, text_columns: Sequence[str] = ()) -> Iterator[InputRow]:
    """Yield the input of each line: a JSON object where it starts with {, else the line as it is, blank ones too.

    Args:
        lines: The lines, in UTF-8.
        file: The file's name, for messages.
        text_columns: As for `open_batches`.

    Raises:
        InputLineError: A line is no input.
    """
    for number, data in enumerate(lines, start=1):
        where = f"{file}:{number}"
        try:
            line = data.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputLineError(f"{where}: cannot be read as UTF-8 text: {error}; save it as UTF-8") from error
        value = _json(line, where=where) if line.lstrip().startswith("{") else line
        yield _parse(value, text_columns, where=where)


def _batches_as_they_come(rows: Iterable[InputRow], size: int) -> Iterator[list[InputRow]]:
    """Yield the rows in batches of all that have come, at most `size`, without waiting for a batch to be full.

    The rows are read by a thread; an error while reading is raised after the rows before it.
    """
    queue: Queue[InputRow | BaseException | None] = Queue(maxsize=4 * size)

    def read() -> None:
        try:
            for row in rows:
                queue.put(row)
            queue.put(None)
        except BaseException as error:
            queue.put(error)

    Thread(target=read, name="input lines", daemon=True).start()
    end: InputRow | BaseException | None = queue.get()
    while isinstance(end, InputRow):
        batch = [end]
        while len(batch) < size and not queue.empty() and isinstance(end := queue.get(), InputRow):
            batch.append(end)
        yield batch
        if isinstance(end, InputRow):
            end = queue.get()
    if end is not None:
        raise end


def _table_rows(path: Path) -> list[dict[str, Any]]:
    import pandas as pd
    from pandas.errors import EmptyDataError, ParserError
    from pyarrow import ArrowInvalid

    try:
        if path.suffix.lower() == PARQUET:
            frame = pd.read_parquet(path)
        else:  # texts as they are written: no cell is turned into a number or a missing value
            separator = SEPARATORS[path.suffix.lower()]
            with path.open(encoding="utf-8-sig", newline="") as lines:  # pandas joins and shifts rows silently
                read_csv_header(lines, file=str(path), location="inputs", options={"sep": separator})
            frame = pd.read_csv(
                path, sep=separator, dtype=str, index_col=False, keep_default_na=False, encoding="utf-8-sig"
            )
    except DataError as error:
        raise InputLineError(str(error)) from error
    except (EmptyDataError, ParserError, ArrowInvalid, UnicodeDecodeError) as error:
        raise InputLineError(f"{path}: cannot be read as {path.suffix[1:].lower()}: {error}; mend the file") from error
    return frame_records(frame)


def _parse(value: Any, text_columns: Sequence[str], *, where: str) -> InputRow:
    """Return the input of a line or a row, with the named columns as its text."""
    if text_columns and isinstance(value, dict):
        if missing := [name for name in text_columns if name not in value]:
            raise InputLineError(
                f"{where} has no column {', '.join(map(repr, missing))} for the text; it has "
                f"{', '.join(map(repr, value)):.200}"
            )
        texts = [value[name] for name in text_columns]
        others = {name: column for name, column in value.items() if name not in text_columns}
        value = others | {"text": texts[0] if len(texts) == 1 else texts}
    return parse_row(value, where=where)


def _json(line: str, *, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputLineError(f"{where}: {line[:80]!r} is not JSON ({error}); give {ALLOWED}") from None
