"""ASGI middleware: host check (against DNS rebinding), body-size limit, request counter."""

from collections.abc import Callable
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from continual.serve.core.error_responses import error_response
from registry import quote

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
MAX_HELD_BODIES = 32  # bodies of the largest size that are held at a time
RequestCounter = Callable[[str, int], None]  # called with the route's path and the status


@dataclass
class _BodySize:
    """Bytes of a request's body that were received."""

    bytes: int = 0


class HostAndSizeMiddleware:
    """Refuses requests with another host (400) or too large a body (413, 429), and counts every response.

    Args:
        app: The application behind the middleware.
        hosts: Host names that the server answers to; empty for all. A server for its own machine alone must refuse
            others: a page of another site can have its name resolve to this machine (DNS rebinding).
        bytes: Bytes that a body may have.
        count: Called once per response.
    """

    def __init__(self, app: ASGIApp, *, hosts: tuple[str, ...], bytes: int, count: RequestCounter) -> None:
        self._app, self._hosts, self._bytes, self._count = app, hosts, bytes, count
        self._held = 0  # bytes of the bodies of all requests that are being answered

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
            message = f"this server answers as {', '.join(self._hosts)}, not as {quote(host)}"
            await error_response(400, message, type="InputError")(scope, receive, counted_send)
        elif length.isdigit() and int(length) > self._bytes:
            await error_response(413, self._too_large, type="TooLarge")(scope, receive, counted_send)
        else:
            body = _BodySize()
            try:
                await self._app(scope, self._limited(receive, body), counted_send)
            except Exception:  # Starlette's outermost middleware answers and logs it
                self._count(_route_path(scope), 500)
                raise
            finally:
                self._held -= body.bytes

    @property
    def _too_large(self) -> str:
        return f"the body is larger than the {self._bytes} bytes that one may have; send several requests"

    def _limited(self, receive: Receive, body: _BodySize) -> Receive:
        """Limit a body, and all bodies together, while it is read."""

        async def limited_receive() -> Message:
            message = await receive()
            size = len(message.get("body", b""))
            body.bytes += size
            self._held += size
            if body.bytes > self._bytes:
                raise HTTPException(413, self._too_large)
            if self._held > MAX_HELD_BODIES * self._bytes:
                raise HTTPException(
                    429, "the bodies of other requests fill the memory for them; ask again in 1 s", {"retry-after": "1"}
                )
            return message

        return limited_receive


def _route_path(scope: Scope) -> str:
    """Return the path of the matched route, not of the URL: URLs would be labels without number."""
    route = scope.get("route")
    return route.path if route else ""
