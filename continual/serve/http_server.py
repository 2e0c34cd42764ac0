"""Running an application on a port until SIGTERM or Ctrl-C, with a graceful shutdown."""

import asyncio
import gc
import ipaddress
import signal
import socket
import time

import uvicorn
from starlette.types import ASGIApp

from continual.serve.core.connections import BoundedProtocol, ConnectionLimits, ConnectionsState
from tasks.errors import InputError


def is_local(host: str) -> bool:
    """Return whether an address can be reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind_socket(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Args:
        host: A host name or an IPv4 or IPv6 address.
        port: The port; 0 takes a free one.

    Raises:
        InputError: The address or the port cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise InputError(f"{host} port {port} cannot be listened on: {error}; give another --host or --port") from error


class GracefulServer(uvicorn.Server):
    """uvicorn's server, which goes on listening while it finishes accepted requests, to answer new ones with 503.

    Args:
        config: uvicorn's settings.
        limits: Bounds on connections.
    """

    server_state: ConnectionsState

    def __init__(self, config: uvicorn.Config, limits: ConnectionLimits) -> None:
        super().__init__(config)
        self.server_state = ConnectionsState(limits)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish accepted requests, then close the sockets and end."""
        self.server_state.closing = True
        accepted, end = set(self.server_state.tasks), time.monotonic() + (self.config.timeout_graceful_shutdown or 0)
        while accepted and not self.force_exit and time.monotonic() < end:
            _, accepted = await asyncio.wait(accepted, timeout=0.1)
        await super().shutdown(sockets)


def create_server(app: ASGIApp, *, grace: float = 60.0, limits: ConnectionLimits | None = None) -> GracefulServer:
    """Return the server of an application, with bounded connections; `run` it on a socket.

    Args:
        app: The application.
        grace: Seconds that accepted requests have to finish after a signal.
        limits: Bounds on connections; None for the defaults of `ConnectionLimits`.
    """
    limits = limits or ConnectionLimits()
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",  # there is none, and its connections would have no limits
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=limits.idle_seconds,  # type: ignore[arg-type]  # passed on to `call_later`
        timeout_graceful_shutdown=int(grace) or 1,
    )
    return GracefulServer(config, limits)


def serve(app: ASGIApp, listener: socket.socket, *, grace: float, limits: ConnectionLimits | None = None) -> bool:
    """Serve an application on a socket until SIGTERM or Ctrl-C.

    Args:
        app: The application.
        listener: The listening socket.
        grace: Seconds that accepted requests have to finish after the signal.
        limits: As for `create_server`.

    Returns:
        Whether Ctrl-C ended it.
    """
    server, received = create_server(app, grace=grace, limits=limits), list[int]()

    def end(number: int, _: object) -> None:
        # uvicorn installs its own handlers later, and raises the signal again when it has shut down.
        received.append(number)
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    gc.collect()
    gc.freeze()  # full collections over the libraries' objects took more than half of a request's time
    server.run(sockets=[listener])
    return signal.SIGINT in received
