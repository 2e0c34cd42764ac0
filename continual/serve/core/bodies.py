"""Request bodies: parsed one at a time, and bounded in structure before anything is validated.

A validator that meets millions of wrong values describes each of them, at a thousand bytes a piece: 8 MB of ones took
gigabytes and minutes. The bounds come first, so that what is validated is small.
"""

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from continual.errors import TooLarge
from continual.serve.core.admission import ClientDisconnected
from tasks.errors import InputError

MAX_FIELDS = 32  # of one JSON object; no request has more than a dozen
VALUES_PER_ROW = 8  # JSON values that one input may consist of, on average
BASE_VALUES = 1024  # values beside the inputs
TOKENS_PER_VALUE = 4  # of those that are counted: a comma, a string, the string of a key, an opening bracket
# A string, or the start of one that has no end: what starts with a quote always matches, so the time is linear.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)


def max_values(rows: int) -> int:
    """Return how many JSON values a request of `rows` inputs may hold."""
    return BASE_VALUES + VALUES_PER_ROW * rows


def count_tokens(data: bytes, *, stop: int) -> int:
    """Count strings, and commas and opening brackets outside strings, until there are more than `stop`.

    >>> count_tokens(b'{"rows": [{"text": "a, b"}, 1]}', stop=100)
    7
    """
    tokens = position = 0
    for match in _STRING.finditer(data):
        tokens += 1 + sum(data.count(sign, position, match.start()) for sign in (b",", b"[", b"{"))
        position = match.end()
        if tokens > stop:
            return tokens
    return tokens + sum(data.count(sign, position) for sign in (b",", b"[", b"{"))


def parse_body(data: bytes, *, rows: int) -> Any:
    """Return the JSON value of a body.

    Args:
        data: The body.
        rows: Inputs that one request may hold.

    Raises:
        TooLarge: There are many more values than `rows` inputs need; this is found without parsing them.
        JSONDecodeError: The body is no JSON, is nested too deeply, or holds an integer of too many digits.
    """
    allowed = max_values(rows)
    if count_tokens(data, stop=TOKENS_PER_VALUE * allowed) > TOKENS_PER_VALUE * allowed:
        raise TooLarge(f"the request holds more than the {allowed} JSON values that one may hold; send several")
    try:
        return json.loads(data)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:  # no UTF-8; thousands of digits; thousands of brackets
        raise json.JSONDecodeError(f"the body is no JSON that can be read: {type(error).__name__}", "", 0) from None


def check_structure(value: Any, *, rows: int) -> None:
    """Check that no list, object or total of a JSON value is larger than a request of `rows` inputs needs.

    Raises:
        TooLarge: A list has more than `rows` elements, or there are more values than `rows` inputs need.
        InputError: An object has more than `MAX_FIELDS` fields.
    """
    waiting, values, allowed = [value], 0, max_values(rows)
    while waiting:
        item = waiting.pop()
        if isinstance(item, list) and len(item) > rows:
            raise TooLarge(f"the request holds {len(item)} inputs, and one may hold {rows}; send several")
        if isinstance(item, dict) and len(item) > MAX_FIELDS:
            raise InputError(f"an object of the body has {len(item)} fields; at most {MAX_FIELDS} are allowed")
        if isinstance(item, (list, dict)):
            values += len(item)
            if values > allowed:
                raise TooLarge(f"the request holds more than the {allowed} JSON values that one may hold; send several")
            waiting.extend(item if isinstance(item, list) else item.values())


def bounded_route(*, rows: int) -> type[APIRoute]:
    """Return the class of routes whose bodies are bounded before they are validated.

    Args:
        rows: Inputs that one request may hold.
    """
    turn = asyncio.Lock()  # the server's loop goes on between two bodies, so that others are answered meanwhile

    class BoundedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()

            async def handle(request: Request) -> Response:
                bounded = _ParsedRequest(request.scope, request.receive)
                if bounded.has_json:
                    await bounded.parse(turn, rows=rows)
                return await handler(bounded)

            return handle

    return BoundedRoute


class _ParsedRequest(Request):
    """A request whose JSON is parsed and bounded before FastAPI asks for it, since FastAPI would hide the errors."""

    _value: Any = None
    _error: json.JSONDecodeError | None = None

    @property
    def has_json(self) -> bool:
        return self.method == "POST" and "json" in self.headers.get("content-type", "").lower()

    async def parse(self, turn: asyncio.Lock, *, rows: int) -> None:
        try:
            data = await self.body()
        except ClientDisconnect as error:
            raise ClientDisconnected from error
        async with turn:
            await asyncio.sleep(0)
            try:
                self._value = parse_body(data, rows=rows)
            except json.JSONDecodeError as error:  # raised by `json`, where FastAPI expects it
                self._error = error
            else:
                check_structure(self._value, rows=rows)

    async def json(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value
