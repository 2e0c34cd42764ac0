"""Shared storage: PostgreSQL, a bucket and an MLflow server, and the how-to page that describes them."""

# ruff: noqa: F811 (fixtures are imported by their names)

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from registry import Registry, find_damage
from tests.helpers.cli import CliRunner, parse_command
from tests.helpers.fresh_processes import FreshPython
from tests.helpers.live_server import wait_until
from tests.helpers.paths import DOCS
from tests.story.test_cli import stream  # noqa: F401

COMPOSE = DOCS / "examples" / "compose.yaml"
TASKS = {"animals", "mood", "place"}


@contextmanager
def tracking(folder: Path, port: int) -> Iterator[None]:
    """Run a tracking server, and kill it at the end of the block."""
    words = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")]
    words += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # jobs would be processes of their own
    command = [sys.executable, "-m", "mlflow", "server", *words]
    server = subprocess.Popen(command, env=quiet, start_new_session=True)
    try:
        wait_until(lambda: server.poll() is not None or answers(port), seconds=120)
        assert server.poll() is None
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # it starts others, which would outlive it
        server.wait()


def answers(port: int) -> bool:
    with socket.socket() as trying:
        return trying.connect_ex(("127.0.0.1", port)) == 0


def test_two_processes_share_a_stream_and_sync_after_an_mlflow_kill(
    cli: CliRunner,
    stream: Path,
    postgres_url: str,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    places = {
        "CONTINUAL_REGISTRY_URL": postgres_url,
        "CONTINUAL_BLOBS_URL": f"{bucket}/{tmp_path.name}",
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
    }
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    words = ["run", str(stream), "--home", str(tmp_path / "other")]
    with tracking(tmp_path, port):
        process = FreshPython("-c", "from continual.cli import main; main()", *words)
        wait_until(lambda: len(cli("deltas", "--json").json) > 0, seconds=120)
    assert cli("run", str(stream)).code == 0
    assert process.wait(120) == 0, process.stderr
    assert {row["task"] for row in cli("deltas", "--json").json} == TASKS, "each of them once"
    assert cli("mlflow", "--json").json, "what MLflow missed waits"

    with tracking(tmp_path, port):
        assert cli("mlflow", "sync", "--json").json, "and nothing but this is said there"
        assert cli("mlflow", "--json").json == []
        client = MlflowClient(tracking_uri=places["MLFLOW_TRACKING_URI"])
        runs = client.search_runs([client.get_experiment_by_name("continual").experiment_id])
        assert sorted(run.info.run_name for run in runs) == ["animals@1", "mood@1", "place@1", "small"]
        assert {row["mlflow_run"] for row in cli("deltas", "--json").json} < {run.info.run_id for run in runs}

    report = cli("report", "--json").json
    assert set(report["tasks"]) == TASKS
    assert report["oracle"]["forgetting"] == 0
    lines = tmp_path / "lines.txt"
    lines.write_text("cat purr meow\nwave coral\n")
    predicted = cli("predict", str(lines)).out
    assert [json.loads(line)["text"] for line in predicted.splitlines()] == lines.read_text().splitlines()
    assert cli("audit", str(stream)).code == 0
    assert cli("verify").code == 0
    assert cli("db", "dump", str(tmp_path / "backup.zip")).code == 0
    for name in places:
        monkeypatch.delenv(name)
    assert cli("db", "restore", str(tmp_path / "backup.zip")).code == 0
    home = tmp_path / "home"
    with Registry.open(f"sqlite:///{home / 'registry.db'}", str(home / "blobs")) as moved:
        assert find_damage(moved) == []
    assert cli("predict", str(lines)).out == predicted


def composed() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return document


def commands() -> list[str]:
    """Return every line that runs this command line, in the page and the compose file."""
    page = (DOCS / "how-to" / "cluster.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```shell\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    lines = [line.partition(" #")[0] for block in blocks for line in block.splitlines()]
    table = re.findall(r"`(continual [^`]+)`", page)
    services = [
        service["command"] for service in composed()["services"].values() if isinstance(service.get("command"), str)
    ]
    command_lines = [
        line[line.index("continual ") :] for line in lines if re.search(r"(^|run --rm serve )continual ", line)
    ]
    return sorted({line.strip() for line in [*command_lines, *table, *services] if line.startswith("continual ")})


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_page_is_valid(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DOCS / "examples")  # where the files are that it names
    for file in ("STREAM.yaml", "TASK.yaml", "backup.zip"):
        line = line.replace(file, str(tmp_path / file))
        (tmp_path / file).touch()
    _, *words = shlex.split(line)
    parse_command(words)


def test_an_invalid_command_would_be_detected() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse_command(["serve", "--replica", "2"])


def test_the_compose_file_is_consistent() -> None:
    document = composed()
    services = document["services"]
    assert document.keys() - {"name", "services", "volumes"} == {"x-continual"}
    named = set(document["volumes"])
    for name, service in services.items():
        assert service.keys() & {"image", "build"}, name
        assert set(service.get("depends_on", {})) <= set(services)
        assert {condition["condition"] for condition in service.get("depends_on", {}).values()} <= {
            "service_healthy",
            "service_completed_successfully",
        }
        for of, condition in service.get("depends_on", {}).items():
            assert condition["condition"] != "service_healthy" or "healthcheck" in services[of], of
        volumes = [volume.split(":")[0] for volume in service.get("volumes", [])]
        assert {volume for volume in volumes if not volume.startswith(".")} <= named
    for name in ("serve", "run"):
        assert {"CONTINUAL_REGISTRY_URL", "CONTINUAL_BLOBS_URL", "MLFLOW_TRACKING_URI"} <= set(
            services[name]["environment"]
        )
    build = services["serve"]["build"]
    assert (COMPOSE.parent / build["context"] / build["dockerfile"]).is_file()
    assert (COMPOSE.parent / build["context"] / "pyproject.toml").is_file()
