"""Regular expressions from PEFT's configs, matched in bounded time: an adapter may come from anybody."""

from collections.abc import Mapping
from typing import Any, TypeVar

import regex

from continual.errors import ExchangeError

MAX_PATTERN_LENGTH = 2000  # characters
MATCH_SECONDS = 1.0  # of one match: module names take microseconds


T = TypeVar("T")


def match_pattern(expression: str, module: str, *, pattern: str) -> Any:
    """Match a regular expression at the start of a module's name.

    Args:
        expression: The expression, as PEFT builds it around `pattern`.
        module: The name.
        pattern: What the config holds, for messages.

    Returns:
        The match, or None.

    Raises:
        ExchangeError: The pattern is no regular expression, is too long, or takes too long.
    """
    shown = f"{pattern[:100]}…" if len(pattern) > 100 else pattern
    if len(pattern) > MAX_PATTERN_LENGTH:
        raise ExchangeError(
            f"the adapter's pattern {shown!r} has {len(pattern)} characters; at most {MAX_PATTERN_LENGTH} are read: "
            "name the modules one by one"
        )
    try:
        return regex.match(expression, module, timeout=MATCH_SECONDS)
    except TimeoutError as error:
        raise ExchangeError(
            f"the adapter's pattern {shown!r} was not matched with module {module!r} within {MATCH_SECONDS:.0f} s; "
            "name the modules without nested repetitions"
        ) from error
    except (regex.error, RecursionError, OverflowError) as error:
        raise ExchangeError(
            f"the adapter's pattern {shown!r} is no regular expression ({error}); write the names of modules"
        ) from error


def first_match(patterns: Mapping[str, T] | None, module: str, default: T) -> T:
    """Return the value of the first pattern that matches a module's name, or else the default.

    As in `peft.utils.other.get_pattern_key`, by which PEFT finds a module's own rank or scale.

    Raises:
        ExchangeError: A pattern cannot be matched.
    """
    matching = (
        value
        for pattern, value in (patterns or {}).items()
        if match_pattern(rf"(.*\.)?({pattern})$", module, pattern=pattern)
    )
    return next(matching, default)
