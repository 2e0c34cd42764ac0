"""Keyset pagination: a page starts after the last row of the previous one, at constant cost."""

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import Select, tuple_
from sqlalchemy.orm import InstrumentedAttribute

from tasks.errors import InputError

Query = TypeVar("Query", bound=Select[*tuple[Any, ...]])
START_CURSOR = (0,)  # ids start at 1


def paginate(query: Query, *keys: InstrumentedAttribute[Any], limit: int | None, after: Sequence[Any] | None) -> Query:
    """Order a query by `keys` and restrict it to one page.

    Args:
        query: A select.
        *keys: Sort columns, the last one unique.
        limit: Maximum number of rows.
        after: Values of `keys` in the last row of the previous page.

    Raises:
        InputError: `limit` is below one.
    """
    # The first page is restricted to a range of ids too: then no database scans the whole table for it.
    cursor = START_CURSOR if after is None and len(keys) == 1 else after
    if cursor is not None:
        query = query.where(tuple_(*keys) > tuple(cursor) if len(keys) > 1 else keys[0] > cursor[0])
    return query.order_by(*keys).limit(validate_limit(limit))


def validate_limit(limit: int | None) -> int | None:
    """Return `limit`.

    Raises:
        InputError: It is below one.
    """
    if limit is not None and limit < 1:
        raise InputError(f"a page cannot have {limit} rows: give a limit of at least 1, or none for all rows.")
    return limit
