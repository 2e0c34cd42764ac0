"""Serving: every learned task of one backbone behind one HTTP endpoint. Needs the extra `serve`."""

from continual.serve.application import POLL_SECONDS, create_app
from continual.serve.config import ServerConfig
from continual.serve.core.access_log import ACCESS_FIELDS, AccessLogMiddleware
from continual.serve.core.admission import Limits
from continual.serve.core.champions import ChampionServer
from continual.serve.core.connections import ConnectionLimits
from continual.serve.http_server import bind_socket, create_server, is_local, serve

__all__ = [
    "ACCESS_FIELDS",
    "POLL_SECONDS",
    "AccessLogMiddleware",
    "ChampionServer",
    "ConnectionLimits",
    "Limits",
    "ServerConfig",
    "bind_socket",
    "create_app",
    "create_server",
    "is_local",
    "serve",
]
