"""What every request passes first: its host, the size of its body, and the count of what came of it."""

from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from continual.serve.core.error_responses import error_response

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
RequestCounter = Callable[[str, int], None]  # path and status


class HostAndSizeMiddleware:
    """Refuses what is too large, and what comes under a name that is not this machine's.

    hosts: the names that the server answers to, none for all: a page of another site, whose name was made to lead here,
    must not reach a server that is for this machine alone · bytes: of a body · count: is told of every answer.
    """

    def __init__(self, app: ASGIApp, *, hosts: tuple[str, ...], bytes: int, count: RequestCounter) -> None:
        self._app, self._hosts, self._bytes, self._count = app, hosts, bytes, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        host, length = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"content-length"))
        large = f"the body is larger than the {self._bytes} bytes that one may have; send several requests"
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._bytes:
                raise HTTPException(413, large)
            return message

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(_path(scope), message["status"])
            await send(message)

        if self._hosts and host.rpartition(":")[0] not in self._hosts and host not in self._hosts:
            refusal = error_response(
                400, f"this server answers as {', '.join(self._hosts)}, not as {host!r}", type="InputError"
            )
            await refusal(scope, receive, counted)
        elif length.isdigit() and int(length) > self._bytes:
            await error_response(413, large, type="TooLarge")(scope, receive, counted)
        else:
            try:
                await self._app(scope, limited, counted)
            except Exception:  # answered, and written to the log, further out
                self._count(_path(scope), 500)
                raise


def _path(scope: Scope) -> str:
    """The operation's path: with what it asks for in it, there would be as many as there are questions."""
    route = scope.get("route")
    return route.path if route else ""
