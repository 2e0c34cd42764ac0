"""MLflow's web interface."""

import os
import socket
import subprocess
import sys

from continual.settings import Locations
from continual.tracking.client import MLFLOW_SETTINGS
from registry import redact
from tasks.errors import InputError


def serve_ui(locations: Locations, *, host: str, port: int) -> int:
    """Serve MLflow's web interface until interrupted; return the exit code of its server.

    Raises:
        InputError: The port cannot be listened on, or the tracking URI is a server, which serves its own interface.
    """
    if locations.mlflow.startswith(("http://", "https://")):
        raise InputError(f"MLflow runs at {redact(locations.mlflow)} already; open that address")
    _require_free(host, port)
    # Passed in the environment: a process's arguments are visible to other users, and the URI may hold a password.
    environment = os.environ | MLFLOW_SETTINGS | {"MLFLOW_BACKEND_STORE_URI": locations.mlflow}
    arguments = ("ui", "--host", host, "--port", str(port))
    return subprocess.call([sys.executable, "-m", "mlflow", *arguments], env=environment)


def _require_free(host: str, port: int) -> None:
    # The exit code of MLflow's server does not show that it cannot listen.
    try:
        socket.create_server((host, port)).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on port {port} of {host}: {error}; give a free one of 1 to 65535") from error
