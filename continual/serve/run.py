"""An application on a port, until it is told to end; then what was accepted is finished first."""

import gc
import ipaddress
import signal
import socket

import uvicorn
from starlette.types import ASGIApp

from tasks.errors import InputError


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind_socket(host: str, port: int) -> socket.socket:
    """A socket on a port, 0 for any that is free. Raises InputError where that cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise InputError(f"{host} port {port} cannot be listened on: {error}; give another --host or --port") from error


def serve(app: ASGIApp, at: socket.socket, *, grace: float) -> None:
    """Answer on a socket until the process is told to end (SIGTERM, Ctrl-C); requests then have `grace` seconds."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(grace) or 1,
    )
    for told in (signal.SIGTERM, signal.SIGINT):
        signal.signal(told, lambda number, frame: None)  # which uvicorn takes over, and raises again at its end
    gc.collect()
    gc.freeze()  # the libraries' objects stay; to walk them again and again took more than half of a request's time
    uvicorn.Server(config).run(sockets=[at])
