"""MLflow's pages."""

import os
import socket
import subprocess
import sys

from continual.settings import Locations
from continual.tracking.client import SETTINGS
from registry import redact
from tasks.errors import InputError


def serve_ui(places: Locations, *, host: str, port: int) -> int:
    """Serve MLflow's pages until interrupted; the exit code of its server.

    Raises InputError for a port that cannot be listened on, and where the tracking URI is a server of its own, whose
    pages are already there.
    """
    if places.mlflow.startswith(("http://", "https://")):
        raise InputError(f"MLflow runs at {redact(places.mlflow)} already; open that address")
    _require_free(host, port)
    # By the environment, not by an argument: the list of processes shows arguments, and the URI may hold a password.
    environment = os.environ | SETTINGS | {"MLFLOW_BACKEND_STORE_URI": places.mlflow}
    server = ("ui", "--host", host, "--port", str(port))
    return subprocess.call([sys.executable, "-m", "mlflow", *server], env=environment)


def _require_free(host: str, port: int) -> None:
    # MLflow's server says nothing by its exit code where it cannot listen.
    try:
        socket.create_server((host, port)).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on port {port} of {host}: {error}; give a free one of 1 to 65535") from error
