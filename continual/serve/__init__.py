"""Serving: every learned task of one backbone behind one HTTP endpoint. Needs the extra `serve`."""

from continual.serve.application import POLL_SECONDS, create_app
from continual.serve.desk import Limits
from continual.serve.recipe import ServerConfig
from continual.serve.run import bind_socket, is_local, serve
from continual.serve.serving import ChampionServer

__all__ = ["POLL_SECONDS", "ChampionServer", "Limits", "ServerConfig", "bind_socket", "create_app", "is_local", "serve"]
