"""ASGI middleware: host check (against DNS rebinding), body-size limit, request counter."""

from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from continual.serve.core.error_responses import error_response

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
RequestCounter = Callable[[str, int], None]  # called with the route's path and the status


class HostAndSizeMiddleware:
    """Refuses requests with another host (400) or too large a body (413), and counts every response.

    Args:
        app: The application behind the middleware.
        hosts: Host names that the server answers to; empty for all. A server for its own machine alone must refuse
            others: a page of another site can have its name resolve to this machine (DNS rebinding).
        bytes: Bytes that a body may have.
        count: Called once per response.
    """

    def __init__(self, app: ASGIApp, *, hosts: tuple[str, ...], bytes: int, count: RequestCounter) -> None:
        self._app, self._hosts, self._bytes, self._count = app, hosts, bytes, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection; only HTTP requests are checked."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        host, length = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"content-length"))

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(_route_path(scope), message["status"])
            await send(message)

        if self._hosts and host.rpartition(":")[0] not in self._hosts and host not in self._hosts:
            message = f"this server answers as {', '.join(self._hosts)}, not as {host!r}"
            await error_response(400, message, type="InputError")(scope, receive, counted_send)
        elif length.isdigit() and int(length) > self._bytes:
            await error_response(413, self._too_large, type="TooLarge")(scope, receive, counted_send)
        else:
            try:
                await self._app(scope, self._limited(receive), counted_send)
            except Exception:  # Starlette's outermost middleware answers and logs it
                self._count(_route_path(scope), 500)
                raise

    @property
    def _too_large(self) -> str:
        return f"the body is larger than the {self._bytes} bytes that one may have; send several requests"

    def _limited(self, receive: Receive) -> Receive:
        """Limit a body of unknown length while it is read."""
        size = 0

        async def limited_receive() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._bytes:
                raise HTTPException(413, self._too_large)
            return message

        return limited_receive


def _route_path(scope: Scope) -> str:
    """Return the path of the matched route, not of the URL: URLs would be labels without number."""
    route = scope.get("route")
    return route.path if route else ""
