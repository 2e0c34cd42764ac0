"""Reading and checking the targets of a task from the columns that its kind needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tasks.columns import Column, Table
from tasks.conversation import Text, text_parts
from tasks.errors import DataError
from tasks.kind_schemas import KIND_SCHEMAS, TargetType
from tasks.rows import AnswerSpan, LabelledTexts, Target
from tasks.source_location import SourceLocation
from tasks.source_spec import SPLITS, Split
from tasks.spec import TaskSpec


def read_targets(spec: TaskSpec, table: Table, texts: Sequence[Text]) -> tuple[Target, ...]:
    """Return the target of every row of a split.

    Args:
        spec: The task.
        table: The split's rows.
        texts: The split's texts; a span task's passage is the second of each pair.

    Raises:
        DataError: A target is missing or invalid; task, split, column and row are named.
    """
    return _READERS[KIND_SCHEMAS[spec.kind].targets](spec, table, texts)


def _read_labels(spec: TaskSpec, table: Table, texts: Sequence[Text]) -> tuple[str, ...]:
    column = target_column(spec, table)
    names = getattr(column.feature, "names", None)  # a `ClassLabel` of `datasets` has names
    return column.read(
        lambda value: _parse_label(value, names),
        allowed="a label; allowed are texts, whole numbers and true or false; label the row or drop it",
    )


def _parse_label(value: Any, names: list[str] | None) -> str | None:
    """Return a label as a string, or None for an invalid value."""
    if names is not None:  # a class number; the hub marks unlabelled rows with -1
        return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, float):  # whole numbers become floats where a reader met a gap in the column
        return str(int(value)) if value.is_integer() else None
    return str(value) if isinstance(value, int) else None


def _read_numbers(spec: TaskSpec, table: Table, texts: Sequence[Text]) -> tuple[float, ...]:
    return target_column(spec, table).read(
        parse_number, allowed="a number; allowed are finite numbers such as 3, 0.5 or 1e-3; mend the row or drop it"
    )


def parse_number(value: Any) -> float | None:
    """Return a finite number, parsed if it is a string, or None for an invalid value.

    >>> parse_number("1e-3"), parse_number(" 2 "), parse_number(True), parse_number("nan"), parse_number("1,5")
    (0.001, 2.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _read_answers(spec: TaskSpec, table: Table, texts: Sequence[Text]) -> tuple[tuple[AnswerSpan, ...], ...]:
    column = target_column(spec, table)
    answers = column.read(
        _parse_answers,
        allowed='answers; allowed are {"text": ["…"], "answer_start": [0]} and ["…"], with at least one answer; '
        "questions without one cannot be learned: drop the row",
    )
    return tuple(
        _locate_answers(column, row, row_answers, passage=text_parts(text)[1])
        for row, (row_answers, text) in enumerate(zip(answers, texts, strict=True), 1)
    )


def _parse_answers(value: Any) -> list[AnswerSpan] | None:
    """Return answers in SQuAD's form, or from a list of texts without offsets; None if invalid."""
    match value:
        case {"text": [str(), *_] as answer_texts, "answer_start": [int(), *_] as starts} if len(answer_texts) == len(
            starts
        ):
            return [AnswerSpan(text, start) for text, start in zip(answer_texts, starts, strict=True)]
        case [str(), *_] | str():
            answer_texts = [value] if isinstance(value, str) else value
            return (
                [AnswerSpan(text, None) for text in answer_texts]
                if all(isinstance(text, str) for text in answer_texts)
                else None
            )
    return None


def _locate_answers(column: Column, row: int, answers: Sequence[AnswerSpan], *, passage: str) -> tuple[AnswerSpan, ...]:
    """Return the answers with offsets; an answer without one gets its first occurrence in the passage.

    Answers that do not occur in the passage keep `start=None` and still count as right in scoring. Raises DataError for
    a wrong offset, or if no answer occurs in the passage.
    """
    for text, start in answers:
        if start is not None and not (start >= 0 and text and passage.startswith(text, start)):
            actual = passage[max(start, 0) :][: len(text)]
            raise column.error_for(row, f"at character {start} of the passage stands {actual!r:.60}, not {text!r:.60}")
    located = [
        AnswerSpan(text, _first_occurrence(passage, text)) if start is None else AnswerSpan(text, start)
        for text, start in answers
    ]
    if all(answer.start is None for answer in located):
        raise column.error_for(row, f"{located[0].text!r:.80} does not occur in the passage; mend the row or drop it")
    return tuple(located)


def _first_occurrence(passage: str, text: str) -> int | None:
    start = passage.find(text) if text else -1
    return None if start < 0 else start


_READERS: Mapping[TargetType, Callable[[TaskSpec, Table, Sequence[Text]], tuple[Target, ...]]] = {
    "labels": _read_labels,
    "numbers": _read_numbers,
    "answers": _read_answers,
}


def target_column(spec: TaskSpec, table: Table) -> Column:
    """Return the target column of the task's kind."""
    name = getattr(spec, KIND_SCHEMAS[spec.kind].target_column)
    assert name is not None  # guaranteed by the spec's validators
    return table.column(name)


def train_labels(spec: TaskSpec, splits: Mapping[Split, LabelledTexts], origin: SourceLocation) -> tuple[str, ...]:
    """Return the labels of train, sorted; an empty tuple for kinds without labels.

    Args:
        spec: The task.
        splits: Rows of all three splits.
        origin: The task's source, for messages.

    Raises:
        DataError: Train has fewer than two labels or numbers, another split has labels that train lacks, or the
            template has not exactly one word per label.
    """
    train, targets = splits["train"], KIND_SCHEMAS[spec.kind].targets
    if targets == "numbers" and len(set(train.targets)) < 2:
        raise DataError(
            f"{origin.split_location('train')}: at least two different numbers are needed; got only {train.targets[0]}"
        )
    if targets != "labels":
        return ()
    labels = set(train.labels)
    if len(labels) < 2:
        raise DataError(
            f"{origin.split_location('train')}: at least two labels are needed; got only {', '.join(map(repr, labels))}"
        )
    for split in SPLITS:
        if unseen := sorted(set(splits[split].labels) - labels):
            listed = ", ".join(map(repr, unseen[:20])) + (f" and {len(unseen) - 20} more" if len(unseen) > 20 else "")
            raise DataError(
                f"{origin.split_location(split)}: labels that train does not have: {listed}; "
                "add such rows to train or drop these"
            )
    if spec.template and spec.template.words.keys() != labels:
        raise DataError(
            f"{origin.split_location('train')}: template.words must have a word for every label and no other; "
            "the labels are "
            f"{', '.join(sorted(labels))}; words are given for {', '.join(sorted(spec.template.words))}"
        )
    return tuple(sorted(labels))
