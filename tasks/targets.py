"""What is right for a row: read from the columns that a kind of task needs, and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tasks.columns import Column, Table
from tasks.errors import DataError
from tasks.kind_requirements import KIND_SCHEMAS, Kind
from tasks.rows import AnswerSpan, GenerationTarget, LabelledTexts, Target, Text
from tasks.source import SourceLocation
from tasks.spec import SPLITS, Split, TaskSpec


def read_targets(spec: TaskSpec, table: Table, texts: Sequence[Text]) -> tuple[Target, ...]:
    """The target of every row. Raises: DataError, naming task, split, column and row."""
    return _READERS[spec.kind](spec, table, texts)


def _labels(spec: TaskSpec, table: Table, texts: Sequence[Text]) -> tuple[str, ...]:
    column = _main(spec, table)
    names = getattr(column.feature, "names", None)  # a class label of `datasets` has them
    return column.read(
        lambda value: _label(value, names),
        allowed="a label; allowed are texts, whole numbers and true or false; label the row or drop it",
    )


def _label(value: Any, names: list[str] | None) -> str | None:
    """A label as text, or None for what is not one."""
    if names is not None:  # a class number; the hub marks unlabelled rows with -1
        return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, float):  # whole numbers become floats where a reader met a gap in the column
        return str(int(value)) if value.is_integer() else None
    return str(value) if isinstance(value, int) else None


def _numbers(spec: TaskSpec, table: Table, texts: Sequence[Text]) -> tuple[float, ...]:
    return _main(spec, table).read(
        parse_number, allowed="a number; allowed are finite numbers such as 3, 0.5 or 1e-3; mend the row or drop it"
    )


def parse_number(value: Any) -> float | None:
    """A finite number, also one that a file holds as text, or None for what is not one.

    >>> number("1e-3"), number(" 2 "), number(True), number("nan"), number("1,5")
    (0.001, 2.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def _wordings(spec: TaskSpec, table: Table, texts: Sequence[Text]) -> tuple[GenerationTarget, ...]:
    targets = _main(spec, table).texts()
    if spec.references is None:
        return tuple(GenerationTarget(target, (target,)) for target in targets)
    references = table.column(spec.references).read(
        _texts, allowed="a text or a list of at least one text; mend the row or drop it"
    )
    return tuple(GenerationTarget(*row) for row in zip(targets, references, strict=True))


def _texts(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, str):
        return (value,)
    many = isinstance(value, list) and value and all(isinstance(one, str) for one in value)
    return tuple(value) if many else None


def _quotes(spec: TaskSpec, table: Table, texts: Sequence[Text]) -> tuple[tuple[AnswerSpan, ...], ...]:
    column = _main(spec, table)
    answers = column.read(
        _answers,
        allowed='answers; allowed are {"text": ["…"], "answer_start": [0]} and ["…"], with at least one answer; '
        "questions without one cannot be learned: drop the row",
    )
    return tuple(
        _quoted(column, row, found, passage=text[1])
        for row, (found, text) in enumerate(zip(answers, texts, strict=True), 1)
    )


def _answers(value: Any) -> list[AnswerSpan] | None:
    """Answers in SQuAD's form, or a list of texts whose places are not said."""
    match value:
        case {"text": [str(), *_] as found, "answer_start": [int(), *_] as starts} if len(found) == len(starts):
            return [AnswerSpan(text, start) for text, start in zip(found, starts, strict=True)]
        case [str(), *_] | str():
            found = [value] if isinstance(value, str) else value
            return [AnswerSpan(text, None) for text in found] if all(isinstance(text, str) for text in found) else None
    return None


def _quoted(column: Column, row: int, answers: Sequence[AnswerSpan], *, passage: str) -> tuple[AnswerSpan, ...]:
    """The answers with their places. Raises: DataError for one that stands elsewhere, or where none is in the passage.

    An answer without a place is taken where it first occurs; the words of one that does not still count as right.
    """
    for text, start in answers:
        if start is not None and not (start >= 0 and text and passage.startswith(text, start)):
            found = passage[max(start, 0) :][: len(text)]
            raise column.error_for(row, f"at character {start} of the passage stands {found!r:.60}, not {text!r:.60}")
    placed = [
        AnswerSpan(text, _first(passage, text)) if start is None else AnswerSpan(text, start) for text, start in answers
    ]
    if all(quote.start is None for quote in placed):
        raise column.error_for(row, f"{placed[0].text!r:.80} does not occur in the passage; mend the row or drop it")
    return tuple(placed)


def _first(passage: str, text: str) -> int | None:
    start = passage.find(text) if text else -1
    return None if start < 0 else start


_READERS: Mapping[Kind, Callable[[TaskSpec, Table, Sequence[Text]], tuple[Target, ...]]] = {
    "classification": _labels,
    "regression": _numbers,
    "span": _quotes,
    "generation": _wordings,
}


def _main(spec: TaskSpec, table: Table) -> Column:
    """The column of what is right."""
    name = getattr(spec, KIND_SCHEMAS[spec.kind].target_column)
    assert name is not None  # a spec without it is no spec
    return table.column(name)


def train_labels(spec: TaskSpec, splits: Mapping[Split, LabelledTexts], origin: SourceLocation) -> tuple[str, ...]:
    """The labels of train, sorted; none for kinds without labels.

    Raises: DataError for fewer than two labels, or numbers, labels that train lacks, and labels without a word.
    """
    train = splits["train"]
    if spec.kind == "regression" and len(set(train.targets)) < 2:
        raise DataError(
            f"{origin.split_location('train')}: at least two different numbers are needed; got only {train.targets[0]}"
        )
    if spec.kind != "classification":
        return ()
    known = set(train.labels)
    if len(known) < 2:
        raise DataError(
            f"{origin.split_location('train')}: at least two labels are needed; got only {', '.join(map(repr, known))}"
        )
    for split in SPLITS:
        if unseen := sorted(set(splits[split].labels) - known):
            listed = ", ".join(map(repr, unseen[:20])) + (f" and {len(unseen) - 20} more" if len(unseen) > 20 else "")
            raise DataError(
                f"{origin.split_location(split)}: labels that train does not have: {listed}; "
                "add such rows to train or drop these"
            )
    if spec.template and spec.template.words.keys() != known:
        raise DataError(
            f"{origin.split_location('train')}: template.words must have a word for every label and no other; "
            "the labels are "
            f"{', '.join(sorted(known))}; words are given for {', '.join(sorted(spec.template.words))}"
        )
    return tuple(sorted(known))
