"""The access log: one record for each request, with its id, path, status, duration and rows, without texts and keys."""

import logging
import re
import time
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID = "x-request-id"
ROWS = "continual.rows"  # the scope's key with the number of the request's inputs
ACCESS_FIELDS = ("request_id", "method", "path", "status", "milliseconds", "rows")
MAX_PATH = 200  # characters of a logged path
NO_RESPONSE = 499  # the client closed the connection first

log = logging.getLogger(__name__)

_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


class AccessLogMiddleware:
    """Logs every request when its response has ended, and returns its id in the header `x-request-id`.

    The id is that of the request's header, if it is up to 64 letters, digits, `.`, `_` and `-`; else a new one. The
    path is logged without the query.

    Args:
        app: The application behind the middleware.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection; only HTTP requests are logged."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, start, status = _request_id(scope), time.monotonic(), NO_RESPONSE

        async def identified_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (REQUEST_ID.encode(), request_id.encode())]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, identified_send)
        finally:
            _log(scope, request_id, status, 1000 * (time.monotonic() - start))


def _request_id(scope: Scope) -> str:
    header = dict(scope["headers"]).get(REQUEST_ID.encode(), b"").decode("latin-1")
    return header if _ID.fullmatch(header) else uuid4().hex


def _log(scope: Scope, request_id: str, status: int, milliseconds: float) -> None:
    path, rows = scope["path"][:MAX_PATH], scope.get(ROWS)
    values = (request_id, scope["method"], path, status, round(milliseconds, 1), rows)
    log.info(
        "%s %s %s in %.1f ms, %s rows, request %s",
        *(scope["method"], path, status, milliseconds, "no" if rows is None else rows, request_id),
        extra=dict(zip(ACCESS_FIELDS, values, strict=True)),
    )
