"""Inputs as people give them, in one format for Python, the command line, HTTP and MLflow.

An input is a text, a pair of texts, or an object `{"text": …}` that may name its `task` and hold further columns. Those
are handed back with the answer, so that answers can be joined to what they answer. A conversation is an object
`{"messages": […]}`, as generation tasks learn them.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from continual.errors import InputLineError
from continual.inference.predictor import ANSWER_FIELDS, Prediction, Predictor
from tasks import Text, parse_messages, text_of
from tasks.conversation import MESSAGES, message_fault

ALLOWED = (
    'a text, a pair of texts, or {"text": …} (or "messages") with a text or a pair and, if it is known, the "task"'
)


@dataclass(frozen=True)
class InputRow:
    """One input.

    Attributes:
        text: A text, a pair of texts, or a conversation.
        task: The task whose delta answers; None lets the router choose.
        columns: Further columns by the names under which they are handed back.
    """

    text: Text
    task: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


def parse_row(value: Any, *, where: str) -> InputRow:
    """Return an input from a text, a pair of texts, or an object.

    Args:
        value: The input.
        where: Its place, for messages.

    Raises:
        InputLineError: It is none of these.

    >>> parse_row({"text": "my card", "id": 7, "label": "lost"}, where="row 1").columns
    {'id': 7, 'input_label': 'lost'}
    """
    if isinstance(value, InputRow):
        return value
    if not isinstance(value, Mapping):
        return InputRow(_text(value, where=where))
    key = "messages" if "messages" in value and "text" not in value else "text"
    if key not in value:
        raise InputLineError(f"{where} has the columns {', '.join(map(repr, value)):.200} and no text; give {ALLOWED}")
    task = value.get("task")
    if not (task is None or isinstance(task, str)):
        raise InputLineError(f"{where}: task {task!r:.80} is no name; give a task's name, or null for the router")
    others = {name: column for name, column in value.items() if name not in (key, "task")}
    text = _text(value[key], where=where) if key == "text" else _conversation(value[key], where=where)
    return InputRow(text, task, answer_columns(others, where=where))


def answer_columns(columns: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Return further columns of an input by the names that they have beside the fields of its answer.

    A column with the name of a field, such as `label`, is named `input_label`.

    Raises:
        InputLineError: Two columns would get one name, or a value is no JSON.
    """
    renamed = {f"input_{name}" if name in ANSWER_FIELDS else str(name): value for name, value in columns.items()}
    if len(renamed) < len(columns):
        raise InputLineError(
            f"{where}: two columns would be handed back under one name; rename one of {', '.join(columns):.200}"
        )
    try:
        json.dumps(renamed, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputLineError(f"{where}: columns have to be JSON to be handed back: {error!s:.200}") from None
    return renamed


def parse_rows(values: Any) -> list[InputRow]:
    """Return the inputs of a list, of a pandas frame with a column `text`, or of one text.

    Args:
        values: One text; or an iterable of texts, pairs and objects; or a frame with a row per input.

    Raises:
        InputLineError: A row is no input.
    """
    if isinstance(values, str):
        return [InputRow(values)]
    if hasattr(values, "to_dict") and hasattr(values, "columns"):
        values = frame_records(values)
    if isinstance(values, Mapping) or not isinstance(values, Iterable):
        raise InputLineError(f"inputs are a list; got {values!r:.80}; give a list whose rows are {ALLOWED}")
    return [parse_row(value, where=f"row {number}") for number, value in enumerate(values, start=1)]


def predict_rows(
    predictor: Predictor,
    rows: Sequence[InputRow],
    *,
    task: str | Sequence[str | None] | None = None,
    among: Sequence[str] | None = None,
    at_least: float | None = None,
) -> list[Prediction]:
    """Predict one answer per input, in order, with the input's further columns.

    Args:
        predictor: Answers the texts.
        rows: N inputs.
        task: The task of all inputs, or of each, that name none themselves.
        among: As for `Predictor.predict`.
        at_least: As for `Predictor.predict`.
    """
    if any(row.task for row in rows):
        defaults = [task] * len(rows) if task is None or isinstance(task, str) else task
        task = [row.task or default for row, default in zip(rows, defaults, strict=True)]
    predictions = predictor.predict([row.text for row in rows], task=task, among=among, at_least=at_least)
    return [replace(answer, columns=row.columns) for answer, row in zip(predictions, rows, strict=True)]


def frame_records(frame: Any) -> list[dict[str, Any]]:
    """Return the rows of a pandas frame by the names of its columns, missing values as None."""
    present = frame.astype(object).where(frame.notna(), None)
    records: list[dict[str, Any]] = present.to_dict("records")
    return records


def _conversation(value: Any, *, where: str) -> Text:
    messages = parse_messages(value.tolist() if hasattr(value, "tolist") else value)  # Parquet's arrays
    if messages is None:
        inside = f" ({problem})" if (problem := message_fault(value)) else ""
        raise InputLineError(f"{where} has the messages {value!r:.80}{inside}; give {MESSAGES}")
    return text_of([message._replace(learned=False) for message in messages])


def _text(value: Any, *, where: str) -> Text:
    if isinstance(value, str):
        return value
    parts = () if isinstance(value, (Mapping, bytes)) or not isinstance(value, Iterable) else tuple(value)
    if len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise InputLineError(f"{where} has the text {value!r:.80}; give {ALLOWED}")
    return str(parts[0]), str(parts[1])
