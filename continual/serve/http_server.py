"""Running an application on a port until SIGTERM or Ctrl-C, with a graceful shutdown."""

import gc
import ipaddress
import signal
import socket

import uvicorn
from starlette.types import ASGIApp

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


def serve(app: ASGIApp, listener: socket.socket, *, grace: float) -> None:
    """Serve an application on a socket until SIGTERM or Ctrl-C.

    Args:
        app: The application.
        listener: The listening socket.
        grace: Seconds that accepted requests have to finish after the signal.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(grace) or 1,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn installs its own handlers and raises the signal again when it has shut down: that must do nothing.
        signal.signal(number, lambda number, frame: None)
    gc.collect()
    gc.freeze()  # full collections over the libraries' objects took more than half of a request's time
    uvicorn.Server(config).run(sockets=[listener])
