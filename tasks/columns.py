"""The columns of one split, and how messages name a value in them."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tasks.errors import DataError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Column:
    """The values of one column; feature: what `datasets` says of them · where: task and split, for messages."""

    name: str
    values: list[Any]
    feature: Any
    location: str

    def error_for(self, number: int, said: str) -> DataError:
        """What is wrong with the value of row `number`, counted from 1."""
        return DataError(f"{self.location}: column {self.name!r}, row {number}: {said}")

    def read(self, parse: Callable[[Any], Value | None], *, allowed: str) -> tuple[Value, ...]:
        """Every value parsed. Raises: DataError for the first one of which `parse` makes nothing."""
        parsed: list[Value] = []
        for number, value in enumerate(self.values, 1):
            found = parse(value)
            if found is None:
                raise self.error_for(number, f"{value!r:.80} is not {allowed}")
            parsed.append(found)
        return tuple(parsed)

    def texts(self) -> tuple[str, ...]:
        """Every value, each of which must be a text."""
        return self.read(_text, allowed="a text; quote it or drop the row")


@dataclass(frozen=True)
class Table:
    """The rows of one split as `datasets` read them; where: task and split, for messages."""

    rows: Any
    where: str

    def column(self, name: str) -> Column:
        """The column of that name. Raises: DataError where there is none, naming those there are."""
        there = self.rows.column_names
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{self.where}: no column {name!r}{hint} (the columns are {', '.join(there)})")
        return Column(name, list(self.rows.select_columns([name])[:][name]), self.rows.features[name], self.where)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
