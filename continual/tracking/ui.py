"""MLflow's web interface."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

from continual.settings import Locations
from continual.tracking.client import MLFLOW_SETTINGS
from continual.tracking.local_store import EXPERIMENT, local_store, relocate_artifacts
from registry import redact
from tasks.errors import InputError

END_SECONDS = 5.0  # that MLflow's server has to end by itself


def serve_ui(locations: Locations, *, host: str, port: int, on_address: Callable[[str], None]) -> int:
    """Serve MLflow's web interface until interrupted or terminated; return the exit code of its server, 0 on SIGTERM.

    Args:
        locations: Where MLflow's store is.
        host: Address to listen on.
        port: Port to listen on.
        on_address: Called with the address of the page that lists the runs.

    Raises:
        KeyboardInterrupt: Ctrl-C ended it.
        InputError: The port cannot be listened on, or the tracking URI is a server, which serves its own interface.
    """
    if locations.mlflow.startswith(("http://", "https://")):
        raise InputError(f"MLflow runs at {redact(locations.mlflow)} already; open that address")
    _require_free(host, port)
    relocate_artifacts(locations)
    on_address(f"http://{host}:{port}/{_runs_page(locations)}")
    # Passed in the environment: a process's arguments are visible to other users, and the URI may hold a password.
    environment = os.environ | MLFLOW_SETTINGS | {"MLFLOW_BACKEND_STORE_URI": locations.mlflow}
    arguments = ("ui", "--host", host, "--port", str(port))
    # A group of its own, so that the workers of MLflow's server end with it.
    server = subprocess.Popen([sys.executable, "-m", "mlflow", *arguments], env=environment, start_new_session=True)
    terminated: list[int] = []

    def terminate(number: int, _: object) -> None:
        terminated.append(number)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        return server.wait()
    except KeyboardInterrupt:
        if not terminated:
            raise
        return 0
    finally:
        signal.signal(signal.SIGTERM, previous)
        _end_group(server)


def _runs_page(locations: Locations) -> str:
    """Return the page of the runs; MLflow's own start page shows traces of chats."""
    from mlflow import MlflowClient

    file = local_store(locations)
    if file and not file.exists():
        return ""
    experiment = MlflowClient(tracking_uri=locations.mlflow).get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return ""
    return f"#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"


def _end_group(server: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(END_SECONDS)


def _require_free(host: str, port: int) -> None:
    # The exit code of MLflow's server does not show that it cannot listen.
    try:
        socket.create_server((host, port)).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on port {port} of {host}: {error}; give a free one of 1 to 65535") from error
