"""Pages of a listing: each begins after the last row of the one before, so that all of them cost the same."""

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import Select, tuple_
from sqlalchemy.orm import InstrumentedAttribute

from tasks.errors import InputError

Found = TypeVar("Found", bound=Select[*tuple[Any, ...]])
START_CURSOR = (0,)  # identities begin at 1


def paginate(found: Found, *keys: InstrumentedAttribute[Any], limit: int | None, after: Sequence[Any] | None) -> Found:
    """`found` in order of `keys`, of which an identity is the last: what comes after `after`, at most `limit` rows.

    Raises: InputError for a limit below one.
    """
    # Also the first page of a table is a range of its identities: then no database reads the whole table for it.
    begin = START_CURSOR if after is None and len(keys) == 1 else after
    if begin is not None:
        found = found.where(tuple_(*keys) > tuple(begin) if len(keys) > 1 else keys[0] > begin[0])
    return found.order_by(*keys).limit(validate_limit(limit))


def validate_limit(limit: int | None) -> int | None:
    """`limit`, if it is one. Raises: InputError for a limit below one."""
    if limit is not None and limit < 1:
        raise InputError(f"a page cannot have {limit} rows: give a limit of at least 1, or none for all rows.")
    return limit
