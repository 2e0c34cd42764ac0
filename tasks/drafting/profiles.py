"""What the values of a column look like, without any of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from tasks.columns import Column, Table
from tasks.conversation import parse_messages
from tasks.targets import parse_number

ValueType = Literal[
    "texts", "whole numbers", "numbers", "classes", "answers", "conversations", "nothing", "other values"
]
MAX_LABEL_LENGTH = 60  # characters, on average
MAX_NUMBERED_LABELS = 20  # different whole numbers that are labels rather than amounts
MIN_REPEATS = 2  # rows of a label, on average
_UNNAMED = re.compile(r"|Unnamed: \d+|index|id|.*[_\- ]id|uuid|guid|key", re.IGNORECASE)
_SHOWN_LABELS, _SHOWN_CHARACTERS = 8, 40


@dataclass(frozen=True)
class ColumnProfile:
    """The type, number and length of a column's values.

    Attributes:
        name: The column's name.
        type: What all values are that are not missing.
        rows: The number of rows.
        missing: The number of values that are absent or blank.
        counts: How often each value occurs, as a text.
    """

    name: str
    type: ValueType
    rows: int
    missing: int
    counts: Counter[str]

    @cached_property
    def mean_length(self) -> float:
        """The mean length of the values, in characters."""
        return sum(len(value) * count for value, count in self.counts.items()) / max(self.rows - self.missing, 1)

    @property
    def different(self) -> int:
        """The number of different values."""
        return len(self.counts)

    @property
    def identifies_rows(self) -> bool:
        """True for numbers and words that only tell rows apart, such as the index that pandas writes."""
        if self.different < self.rows or self.type not in ("texts", "whole numbers"):
            return False
        if _UNNAMED.fullmatch(self.name) or self.type == "whole numbers":
            return True
        return all(value.isascii() and not re.search(r"\s", value) and re.search(r"\d", value) for value in self.counts)

    @property
    def is_text(self) -> bool:
        """True for texts that may be read."""
        return self.type == "texts" and not self.identifies_rows

    @property
    def are_labels(self) -> bool:
        """True for few different values that repeat."""
        if self.type == "classes":
            return self.different > 1
        repeat = 1 < self.different <= self.rows / MIN_REPEATS
        if self.type == "whole numbers":
            return repeat and self.different <= MAX_NUMBERED_LABELS
        return self.type == "texts" and repeat and self.mean_length <= MAX_LABEL_LENGTH

    @property
    def are_amounts(self) -> bool:
        """True for numbers that a regression may predict."""
        return self.type == "numbers" and self.different > 1

    def describe(self) -> str:
        """Describe the values, with no text among them."""
        if self.type == "nothing":
            return "no values"
        length = f", {self.mean_length:.0f} characters on average" if self.type == "texts" else ""
        missing = f", {self.missing} missing" if self.missing else ""
        return f"{self.type}, {self.different} different in {self.rows} rows{length}{missing}"

    def describe_labels(self) -> str:
        """List the most frequent labels with their numbers of rows."""
        shown = self.counts.most_common(_SHOWN_LABELS)
        more = f" and {self.different - len(shown)} more" if self.different > len(shown) else ""
        return ", ".join(f"{_shorten(label)!r} {count}" for label, count in shown) + more


def profile_table(table: Table) -> dict[str, ColumnProfile]:
    """Return the profile of every column, by its name."""
    return {name: profile_column(table.column(name)) for name in table.column_names}


def profile_column(column: Column) -> ColumnProfile:
    """Return the profile of a column."""
    present = [value for value in column.values if not _is_missing(value)]
    names = getattr(column.feature, "names", None)
    type_name = "classes" if names or _all_are(present, bool) else _type_of(present)
    values = [names[value] for value in present if 0 <= value < len(names)] if names else present
    return ColumnProfile(
        column.name, type_name, len(column.values), len(column.values) - len(present), Counter(map(str, values))
    )


def _type_of(values: Sequence[Any]) -> ValueType:
    if not values:
        return "nothing"
    numbers = [parse_number(value) for value in values]
    if all(number is not None for number in numbers):
        return "whole numbers" if all(number is not None and number.is_integer() for number in numbers) else "numbers"
    if _all_are(values, str):
        return "texts"
    if all(map(parse_messages, values)):
        return "conversations"
    return "answers" if all(map(_has_answers, values)) else "other values"


def _has_answers(value: Any) -> bool:
    return isinstance(value, dict) and {"text", "answer_start"} <= value.keys()


def _all_are(values: Sequence[Any], kind: type) -> bool:
    return bool(values) and all(isinstance(value, kind) for value in values)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _shorten(label: str) -> str:
    return label if len(label) <= _SHOWN_CHARACTERS else f"{label[: _SHOWN_CHARACTERS - 1]}…"
