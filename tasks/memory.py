"""Tables of rows in memory: pandas frames, `datasets.Dataset`s, and lists of mappings."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.columns import Column, DatasetTable, Table, missing_column
from tasks.errors import DataError

TABLES = "a pandas DataFrame, a datasets.Dataset, or a list of mappings such as {'text': 'my card', 'label': 'lost'}"


@dataclass(frozen=True, eq=False)  # frames cannot be compared: equal is what is the same object
class MemoryRows:
    """Rows of one split that a Python process holds; they are read when the task is loaded.

    Attributes:
        rows: A pandas DataFrame, a `datasets.Dataset`, or a list of mappings from names of columns to values.
    """

    rows: Any = field(repr=False)

    @property
    def type_name(self) -> str:
        """The name of the rows' type, for messages."""
        return type(self.rows).__name__

    def table(self, location: str) -> Table:
        """Return the rows as a table.

        Args:
            location: Task and split, for messages.

        Raises:
            DataError: A row of a list is no mapping.
        """
        if is_dataset(self.rows):
            return DatasetTable(self.rows, location)
        return _frame_table(self.rows, location) if is_frame(self.rows) else _list_table(self.rows, location)


def is_table(value: object) -> bool:
    """Return True if the value has the type of one of `TABLES`."""
    return isinstance(value, list | tuple) or is_frame(value) or is_dataset(value)


def is_frame(value: object) -> bool:
    """Return True if the value is a pandas DataFrame."""
    import pandas

    return isinstance(value, pandas.DataFrame)


def is_dataset(value: object) -> bool:
    """Return True if the value is a `datasets.Dataset` with a length, not a stream of rows."""
    import datasets

    return isinstance(value, datasets.Dataset)


@dataclass(frozen=True)
class _ColumnTable:
    """A `Table` of columns of Python values.

    Attributes:
        columns: Values by name.
        size: Number of rows.
        location: Task and split, for messages.
        repeated: Names of more than one column.
    """

    columns: Mapping[str, Iterable[Any]]
    size: int
    location: str
    repeated: Collection[str] = ()

    def __len__(self) -> int:
        return self.size

    @property
    def column_names(self) -> tuple[str, ...]:
        """The names of the columns, in order."""
        return tuple(self.columns)

    def column(self, name: str) -> Column:
        """See `Table.column`."""
        if name in self.repeated:
            raise DataError(f"{self.location}: there is more than one column {name!r}; rename or drop one")
        if name not in self.columns:
            raise missing_column(self.location, name, self.columns)
        return Column(name, [_python_value(value) for value in self.columns[name]], None, self.location)


def _frame_table(frame: Any, location: str) -> _ColumnTable:
    names = [str(name) for name in frame.columns]
    columns = {name: frame.iloc[:, number] for number, name in enumerate(names)}
    return _ColumnTable(columns, len(frame), location, repeated={name for name in names if names.count(name) > 1})


def _list_table(rows: Collection[Any], location: str) -> _ColumnTable:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise DataError(
                f"{location}, row {number}: {row!r:.80} is no mapping of columns to values; give every row as one, "
                "such as {'text': 'my card', 'label': 'lost'}"
            )
    names = dict.fromkeys(name for row in rows for name in row)
    return _ColumnTable({str(name): [row.get(name) for row in rows] for name in names}, len(rows), location)


def _python_value(value: Any) -> Any:
    """Return a value with scalars and arrays of NumPy, at any depth, as Python's numbers and lists."""
    if isinstance(value, Mapping):
        return {key: _python_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_python_value(item) for item in value]
    plain = value.tolist() if hasattr(value, "dtype") and hasattr(value, "tolist") else value
    return [_python_value(item) for item in plain] if isinstance(plain, list) else plain
