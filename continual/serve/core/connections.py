"""Connections: deadlines and size limits that uvicorn lacks, for its protocol on httptools.

uvicorn limits idle time between two requests only. A request that is never sent to its end, headers without end, and
connections without requests stayed until the process ran out of memory or descriptors.
"""

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from continual.serve.core.error_responses import error_response

try:
    import resource
except ImportError:  # Windows does not limit a process's sockets
    resource = None  # type: ignore[assignment]

MAX_CONNECTIONS = 1000
MIN_CONNECTIONS = 16
RESERVED_DESCRIPTORS = 64  # for the database, blobs and files
CHUNKING = 8  # bytes sent per byte of a body, at most: a chunk of one byte takes six
FLUSH_SECONDS = 5.0  # for the last response of a connection that is closed

REFUSALS: Mapping[int, tuple[str, str]] = {  # by status: reason phrase and message
    408: ("Request Timeout", "the request was not sent in time; send it as a whole"),
    413: ("Content Too Large", "the body is larger than one may be; send several requests"),
    431: ("Request Header Fields Too Large", "the headers are larger than they may be; send less"),
    503: ("Service Unavailable", "there are too many connections; ask again in 1 s"),
}


def connection_limit() -> int:
    """Return how many connections the process has descriptors for, at most `MAX_CONNECTIONS`."""
    if resource is None:
        return MAX_CONNECTIONS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    folder = next(filter(os.path.isdir, ("/proc/self/fd", "/dev/fd")), None)
    used = len(os.listdir(folder)) if folder else RESERVED_DESCRIPTORS
    return max(min(soft - used - RESERVED_DESCRIPTORS, MAX_CONNECTIONS), MIN_CONNECTIONS)


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """Bounds on single connections and on their number.

    Attributes:
        header_seconds: Seconds in which a request's headers must arrive, from its first byte or the connection on.
        body_seconds: Seconds in which its body must arrive.
        write_seconds: Seconds for which a client may leave a response unread.
        idle_seconds: Seconds that a connection may stay open between two requests.
        header_bytes: Bytes of a request's line, headers and trailers.
        body_bytes: Bytes of a body; the application refuses larger ones in words, this limit ends the transfer.
        connections: Open connections; None for what the process's limit of descriptors allows, at most 1000.
    """

    header_seconds: float = 10.0
    body_seconds: float = 60.0
    write_seconds: float = 60.0
    idle_seconds: float = 5.0
    header_bytes: int = 1 << 16
    body_bytes: int = 8 << 20
    connections: int | None = None


class ConnectionsState(ServerState):
    """The connections of one server.

    Attributes:
        limits: Bounds on connections.
        max_connections: Connections that may be open.
        opened: Open connections, the oldest first.
        closing: The server finishes accepted requests and refuses new ones.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        super().__init__()
        self.limits = limits
        self.max_connections = limits.connections or connection_limit()
        self.opened: dict[BoundedProtocol, None] = {}
        self.closing = False

    def make_room(self) -> bool:
        """Return whether another connection fits, after closing the oldest one without a request if necessary."""
        if len(self.opened) < self.max_connections:
            return True
        idle = next((connection for connection in self.opened if not connection.is_answering), None)
        if idle is not None:
            idle.abort()
        return idle is not None


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with deadlines, size limits and a bounded number of connections."""

    server_state: ConnectionsState

    def __init__(
        self,
        config: Config,
        server_state: ConnectionsState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = server_state.limits
        self._deadline: asyncio.TimerHandle | None = None  # of the headers or the body that are being received
        self._write_deadline: asyncio.TimerHandle | None = None
        self._header_bytes = self._message_bytes = 0
        self._receives_headers, self._refused = True, False

    @property
    def is_answering(self) -> bool:
        """Whether a request was received as a whole, or is being received after its headers."""
        return self.cycle is not None and not self.cycle.response_complete

    def abort(self) -> None:
        """Close the connection at once."""
        self.server_state.opened.pop(self, None)
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection if there is room."""
        room = self.server_state.make_room()
        super().connection_made(transport)
        self.server_state.opened[self] = None
        if room:
            self._set_deadline(self._limits.header_seconds)
        else:
            self._refuse(503)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        self.server_state.opened.pop(self, None)
        self._set_deadline(None)
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes within the limits."""
        if self._refused:
            return
        if self._deadline is None:
            self._set_deadline(self._limits.header_seconds)
        self._message_bytes += len(data)
        headers_first = self._receives_headers
        if headers_first:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._refused or self.transport.is_closing():
            return
        if headers_first and self._receives_headers and self._header_bytes > self._limits.header_bytes:
            self._refuse(431)
        elif self._message_bytes > self._limits.header_bytes + CHUNKING * self._limits.body_bytes:
            self._refuse(413)

    def on_message_begin(self) -> None:
        """Start to receive a request."""
        super().on_message_begin()
        self._receives_headers = True

    def on_url(self, url: bytes) -> None:
        """Receive a part of the request's path."""
        super().on_url(url)
        if len(self.url) > self._limits.header_bytes:
            self._refuse(431)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Receive a header or a trailer."""
        super().on_header(name, value)
        if not self._receives_headers:
            self.headers.pop()  # trailers are not part of the request that the application has
            self._header_bytes += len(name) + len(value)
            if self._header_bytes > self._limits.header_bytes:
                self._refuse(431)

    def on_headers_complete(self) -> None:
        """Start to answer a request."""
        self._receives_headers = False
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        self._header_bytes = size
        self.app = self.config.loaded_app
        if size > self._limits.header_bytes:
            self.app = _refusal(431)
        elif self.server_state.closing:
            self.app = _closing
        super().on_headers_complete()
        self._set_deadline(self._limits.body_seconds)

    def on_message_complete(self) -> None:
        """Receive the end of a request."""
        super().on_message_complete()
        self._set_deadline(None)
        self._header_bytes = self._message_bytes = 0
        self._receives_headers = True

    def pause_writing(self) -> None:
        """Wait for a client to read its response, for a time."""
        super().pause_writing()
        if self._write_deadline is None:
            self._write_deadline = self.loop.call_later(self._limits.write_seconds, self.abort)

    def resume_writing(self) -> None:
        """Go on writing."""
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None
        super().resume_writing()

    def _set_deadline(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._too_late)

    def _too_late(self) -> None:
        self._deadline = None
        if self.pipeline:  # reading is paused: the client could not send the rest
            self._set_deadline(self._limits.body_seconds)
        else:
            self._refuse(408)

    def _refuse(self, status: int) -> None:
        """Close the connection, with a response unless one was begun."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._set_deadline(None)
        answered = self.cycle is not None and self.cycle.response_started  # the last request whose headers arrived
        if not answered or (self.cycle.response_complete and self._receives_headers):
            reason, message = REFUSALS[status]
            body = json.dumps({"error": {"message": message, "type": reason, "param": None, "code": None}}).encode()
            self.transport.write(
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
                % (status, reason.encode(), len(body), body)
            )
        self.transport.close()
        self.loop.call_later(FLUSH_SECONDS, self.transport.abort)


def _refusal(status: int) -> ASGIApp:
    reason, message = REFUSALS[status]

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        response = error_response(status, message, type=reason)
        response.headers["connection"] = "close"
        await response(scope, receive, send)

    return refuse


async def _closing(scope: Scope, receive: Receive, send: Send) -> None:
    message = "the server is closing; ask another one, or this one when it is back"
    response = error_response(503, message, type="Closing")
    response.headers["connection"] = "close"
    await response(scope, receive, send)
