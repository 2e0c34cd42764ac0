"""Answers of `continual predict`: JSON lines as they are made, or a file that appears when it is complete."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from continual.cli.input_files import PARQUET, SEPARATORS
from continual.inference.predictor import Prediction
from tasks.errors import InputError

LINES = ".jsonl"
SUFFIXES = (LINES, *SEPARATORS, PARQUET)

Write = Callable[[Sequence[Prediction]], None]


def check_output(file: Path | None) -> None:
    """Check that answers can be written to `file`; None is standard output.

    Raises:
        InputError: Its suffix names no format, or it is in no folder.
    """
    if file is None:
        return
    if file.suffix.lower() not in SUFFIXES:
        raise InputError(f"--output {file}: the suffix {file.suffix!r} is no format; allowed: {', '.join(SUFFIXES)}")
    if file.is_dir() or not file.parent.is_dir():
        raise InputError(f"--output {file}: there is no folder {file.parent}, or it is one itself; give another file")


@contextmanager
def open_output(file: Path | None) -> Iterator[Write]:
    """Yield a function that writes predictions, in order; a file is replaced at the end of the block."""
    if file is None:
        yield _print_lines
        return
    draft = file.with_name(f".{uuid4().hex}{file.suffix}")
    try:
        with _lines_to(draft) if file.suffix.lower() == LINES else _table_to(draft) as write:
            yield write
        draft.replace(file)
    except OSError as error:
        raise InputError(f"--output {file} cannot be written: {error.strerror or error}; give another file") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _print_lines(predictions: Sequence[Prediction]) -> None:
    sys.stdout.writelines(map(_json_line, predictions))
    sys.stdout.flush()


@contextmanager
def _lines_to(draft: Path) -> Iterator[Write]:
    with draft.open("w", encoding="utf-8") as lines:
        yield lambda predictions: lines.writelines(map(_json_line, predictions))


@contextmanager
def _table_to(draft: Path) -> Iterator[Write]:
    import pandas as pd

    answers: list[dict[str, Any]] = []
    yield lambda predictions: answers.extend(prediction.to_json() for prediction in predictions)
    columns = dict.fromkeys(name for answer in answers for name in answer)
    table = pd.DataFrame({name: _cells([answer.get(name) for answer in answers]) for name in columns})
    if draft.suffix.lower() == PARQUET:
        table.to_parquet(draft, index=False)
    else:
        table.to_csv(draft, sep=SEPARATORS[draft.suffix.lower()], index=False)


def _cells(values: Sequence[Any]) -> list[Any]:
    """Return values of one type that a table holds; others, such as lists, as JSON."""
    types = {type(value) for value in values if value is not None}
    if len(types) <= 1 and types <= {str, bool, int, float}:
        return list(values)
    return [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]


def _json_line(prediction: Prediction) -> str:
    answer = prediction.to_json()
    line = json.dumps(answer, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold and UTF-8 cannot
        line = json.dumps(answer)
    return line + "\n"
