"""The columns of one split, with error messages that name task, split, column and row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tasks.errors import DataError
from tasks.plugins import closest_match

Value = TypeVar("Value")


@dataclass(frozen=True)
class Column:
    """The values of one column of a split.

    Attributes:
        name: The column's name.
        values: One value per row, in order.
        feature: The column's feature in `datasets`, such as `ClassLabel` or `Value("string")`.
        location: Task and split, for messages.
    """

    name: str
    values: list[Any]
    feature: Any
    location: str

    def error_for(self, row: int, problem: str) -> DataError:
        """Return the error for the value of row `row`, counted from 1."""
        return DataError(f"{self.location}: column {self.name!r}, row {row}: {problem}")

    def read(self, parse: Callable[[Any], Value | None], *, allowed: str) -> tuple[Value, ...]:
        """Parse every value of the column.

        Args:
            parse: Returns the parsed value, or None for a value that it rejects.
            allowed: Description of the accepted values, for the message.

        Returns:
            The parsed values, in order.

        Raises:
            DataError: `parse` rejects a value; the first such row is named.
        """
        parsed: list[Value] = []
        for row, value in enumerate(self.values, 1):
            result = parse(value)
            if result is None:
                raise self.error_for(row, f"{value!r:.80} is not {allowed}")
            parsed.append(result)
        return tuple(parsed)

    def texts(self) -> tuple[str, ...]:
        """Return every value, each of which must be a string."""
        return self.read(_text_or_none, allowed="a text; quote it or drop the row")


@dataclass(frozen=True)
class Table:
    """The rows of one split.

    Attributes:
        rows: A `datasets.Dataset`.
        location: Task and split, for messages.
    """

    rows: Any
    location: str

    def column(self, name: str) -> Column:
        """Return the column called `name`.

        Raises:
            DataError: There is no such column; the message lists the columns.
        """
        column_names = self.rows.column_names
        if name not in column_names:
            match = closest_match(name, column_names)
            hint = f"; did you mean {match!r}?" if match else ""
            raise DataError(f"{self.location}: no column {name!r}{hint} (the columns are {', '.join(column_names)})")
        return Column(name, list(self.rows.select_columns([name])[:][name]), self.rows.features[name], self.location)


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None
