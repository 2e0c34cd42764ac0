"""Damage of a SQLite file: what SQLite's own check finds, and values of another type than their column.

SQLite keeps a value of any type in any column, so that a damaged row is read as if it were sound.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any, get_args, get_origin

from sqlalchemy import JSON, Float, Integer
from sqlalchemy.orm import ColumnProperty

from registry.schema import score_tables, strategy_tables, tables  # noqa: F401 (all tables are of `Base`)
from registry.schema.base import Base
from registry.schema.connections import sqlite_file

SHOWN = 10  # findings


def file_damage(url: str) -> list[str]:
    """Return what is damaged in a SQLite file; nothing for other databases.

    Args:
        url: URL of the database.
    """
    file = sqlite_file(url)
    if file is None or not file.is_file():
        return []
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            connection.text_factory = lambda text: text.decode(errors="replace")
            problems = [str(row[0]) for row in connection.execute(f"PRAGMA quick_check({SHOWN})") if row[0] != "ok"]
            problems = problems or list(_mistyped_values(connection))
    except sqlite3.OperationalError:  # locked, in a folder where nothing may be created, or of another schema
        return []
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter in place of an error with such a message
        problems = [str(error)]
    return [f"the file {file} is damaged: {line}" for line in problems]


def _mistyped_values(connection: sqlite3.Connection) -> Iterator[str]:
    """Yield values of another type than their column."""
    for mapper in sorted(Base.registry.mappers, key=lambda mapper: mapper.local_table.description):
        table = mapper.local_table.description
        for attribute in mapper.column_attrs:
            column, expected, wrong = attribute.columns[0].name, *_type_check(attribute, mapper.class_)
            query = f'SELECT id FROM "{table}" WHERE "{column}" IS NOT NULL AND {wrong} LIMIT {SHOWN}'
            for (row,) in connection.execute(query):
                yield f"{table} row {row}: {column} is not {expected}"


def _type_check(attribute: ColumnProperty[Any], owner: type) -> tuple[str, str]:
    """Return the type of an attribute's column in words, and the SQL condition that a value is of another."""
    column = attribute.columns[0]
    if isinstance(column.type, JSON):
        kind = "array" if _is_list(owner.__annotations__[attribute.key]) else "object"
        text = f'typeof("{column.name}") = \'text\' AND json_valid("{column.name}")'
        kinds = f"('{kind}', 'null')" if column.nullable else f"('{kind}')"  # a restored NULL is JSON's null
        return f"a JSON {kind}", f"coalesce(CASE WHEN {text} THEN json_type(\"{column.name}\") END, '') NOT IN {kinds}"
    if isinstance(column.type, Integer):
        return "an integer", f"typeof(\"{column.name}\") <> 'integer'"
    if isinstance(column.type, Float):
        return "a number", f"typeof(\"{column.name}\") NOT IN ('real', 'integer')"
    return "a text", f"typeof(\"{column.name}\") <> 'text'"


def _is_list(annotation: Any) -> bool:
    """Return whether `Mapped[…]` is of a list."""
    return any(get_origin(mapped) is list for mapped in get_args(annotation))
