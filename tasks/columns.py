"""The columns of one split, with error messages that name task, split, column and row."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Protocol, TypeVar

from tasks.csv_check import separator_hint
from tasks.errors import DataError
from tasks.plugins import closest_match

Value = TypeVar("Value")
_WRITTEN_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?Z?")


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

    def read(
        self,
        parse: Callable[[Any], Value | None],
        *,
        allowed: str,
        fault: Callable[[Any], str | None] = lambda _: None,
    ) -> tuple[Value, ...]:
        """Parse every value of the column.

        Args:
            parse: Returns the parsed value, or None for a value that it rejects.
            allowed: Description of the accepted values, for the message.
            fault: Returns what is wrong inside a rejected value, where that can be told.

        Returns:
            The parsed values, in order.

        Raises:
            DataError: `parse` rejects a value; the first such row is named.
        """
        parsed: list[Value] = []
        for row, value in enumerate(self.values, 1):
            result = parse(value)
            if result is None:
                inside = f"{problem}: " if (problem := fault(value)) else ""
                raise self.error_for(row, f"{inside}{value!r:.80} is not {allowed}")
            parsed.append(result)
        return tuple(parsed)

    def texts(self) -> tuple[str, ...]:
        """Return every value, each of which must be a string."""
        dates = any(isinstance(value, date) for value in self.values)
        advice = "write the column as texts" if dates else "write it as a text or drop the row"
        return self.read(_text_or_none, allowed=f"a text; {advice}")


@dataclass(frozen=True)
class FileSchema:
    """The columns of one file of a split.

    Attributes:
        file: The file's name, for messages.
        names: The columns as the reader names them.
        repeated: Names that the file gives to more than one column.
        features: Features in `datasets` by name; empty for formats without types.
    """

    file: str
    names: tuple[str, ...]
    repeated: tuple[str, ...] = ()
    features: Mapping[str, Any] = field(default_factory=dict)


class Table(Protocol):
    """The rows of one split; columns that no one asks for are never checked."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    @property
    def column_names(self) -> tuple[str, ...]:
        """The names of the columns, in order."""
        ...

    def column(self, name: str) -> Column:
        """Return the column called `name`.

        Raises:
            DataError: There is no such column (the message lists the columns), or no single one of one meaning.
        """
        ...


@dataclass(frozen=True)
class DatasetTable:
    """A `Table` of rows that `datasets` has read.

    Attributes:
        rows: A `datasets.Dataset`.
        location: Task and split, for messages.
        files: The columns of each file; empty where the source is not local files.
        originals: Returns a column's values as the file has them, or None; for JSON, read with dates as dates.
    """

    rows: Any
    location: str
    files: tuple[FileSchema, ...] = ()
    originals: Callable[[str], list[Any] | None] = lambda _: None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def column_names(self) -> tuple[str, ...]:
        """The names of the columns, in order."""
        return tuple(self.rows.column_names)

    def column(self, name: str) -> Column:
        """Return the column called `name`.

        Raises:
            DataError: There is no such column (the message lists the columns), a file has two of the name, or the files
                give it different types or orders of labels.
        """
        self._check_files(name)
        if name not in self.rows.column_names:
            raise missing_column(self.location, name, self.rows.column_names)
        feature = self.rows.features[name]
        values = list(self.rows.select_columns([name])[:][name])
        if _holds_timestamps(self.rows.features.arrow_schema.field(name).type) or any(
            map(_is_written_timestamp, values)
        ):
            values = self.originals(name) or values
        return Column(name, values, feature, self.location)

    def _check_files(self, name: str) -> None:
        for schema in self.files:
            if name in schema.repeated:
                raise DataError(f"{self.location}: {schema.file} has more than one column {name!r}; rename or drop one")
            if name not in schema.names and any(name in file.names for file in self.files):
                raise DataError(
                    f"{self.location}: {schema.file} has no column {name!r}, other files of the split have "
                    f"(its columns are {', '.join(schema.names)}); give every file the column"
                )
        for schema in self.files[1:]:
            first, feature = (file.features.get(name) for file in (self.files[0], schema))
            if not _are_compatible(first, feature):
                raise DataError(
                    f"{self.location}: column {name!r} is {_describe(first)} in {self.files[0].file} but "
                    f"{_describe(feature)} in {schema.file}, and would be read as the first; write both files alike"
                )


def missing_column(location: str, name: str, column_names: Iterable[str]) -> DataError:
    """Return the error for a column that a table lacks, with the nearest name and all names."""
    names = list(column_names)
    match = closest_match(name, names)
    advice = f"; did you mean {match!r}?" if match else ""
    if hint := separator_hint(names, wanted=[name]):
        advice = f"; {hint}"
    return DataError(f"{location}: no column {name!r}{advice} (the columns are {', '.join(names)})")


def _are_compatible(first: Any, second: Any) -> bool:
    """Return True if values of the second feature keep their meaning when read as the first."""
    if first == second or first is None or second is None:
        return True
    types = [str(getattr(feature, "dtype", "")) for feature in (first, second) if not hasattr(feature, "names")]
    families = {_family(type_name) for type_name in types}
    return len(types) == 2 and (len(families) == 1 or "null" in families)


def _family(type_name: str) -> str:
    """Return a name common to types that differ in width only, such as int8 and int64."""
    return type_name.removeprefix("large_").removesuffix("_view").removeprefix("u").rstrip("0123456789")


def _describe(feature: Any) -> str:
    names = getattr(feature, "names", None)
    if names is None:
        return str(getattr(feature, "dtype", None) or feature)
    return f"a label out of [{', '.join(names[:20])}{', …' if len(names) > 20 else ''}], in this order,"


def _holds_timestamps(arrow_type: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_temporal(arrow_type) or any(
        _holds_timestamps(arrow_type.field(i).type) for i in range(arrow_type.num_fields)
    )


def _is_written_timestamp(value: Any) -> bool:
    """Return True if `value` may be a date that Arrow turned back into a text."""
    return isinstance(value, str) and _WRITTEN_TIMESTAMP.fullmatch(value) is not None


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None
