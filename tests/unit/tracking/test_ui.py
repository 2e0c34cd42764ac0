"""MLflow's web interface: the address of the runs is said, and all of its processes end with it."""

import os
import signal
import time
from pathlib import Path
from threading import Thread

import pytest

from continual.settings import Locations
from continual.tracking import flush_outbox, serve_ui
from registry import Registry
from tests.helpers.registries import begin, learn

SERVER = """import os, subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
with open("pids", "w") as file:
    file.write(f"{os.getpid()} {worker.pid}")
worker.wait()
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc").is_dir() else True


def test_the_server_and_its_workers_end_when_it_is_terminated(
    registry: Registry, places: Locations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn(registry, "sst2")
    begin(registry, "sst2")
    list(flush_outbox(registry, places))
    (tmp_path / "mlflow.py").write_text(SERVER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    addresses: list[str] = []

    def terminate() -> None:
        while not (tmp_path / "pids").exists() or not (tmp_path / "pids").read_text():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    def begun(address: str) -> None:
        addresses.append(address)
        Thread(target=terminate, daemon=True).start()

    assert serve_ui(places, host="127.0.0.1", port=5999, on_address=begun) == 0
    assert addresses == ["http://127.0.0.1:5999/#/experiments/1/runs?workflowType=machine_learning"]
    server, worker = map(int, (tmp_path / "pids").read_text().split())
    assert not alive(server)
    deadline = time.monotonic() + 5
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(worker)
