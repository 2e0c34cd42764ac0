"""The README: every block runs as it stands, in a folder with the contents of a clone."""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from continual.cli import main
from tests.helpers.fresh_processes import run_python
from tests.helpers.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PLACES = ("CONTINUAL_REGISTRY_URL", "CONTINUAL_BLOBS_URL", "MLFLOW_TRACKING_URI")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "docs", folder / "docs")
    return folder


def in_a_shell(line: str) -> str:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    completed = subprocess.run(
        ["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert completed.returncode == 0, f"{line}\n{completed.stdout}\n{completed.stderr}"
    return completed.stdout


def answered(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the output of a command line; a single one of this project runs in this process."""
    piped, _, command = line.rpartition(" | ")
    words, before = shlex.split(command), shlex.split(piped)
    if words[0] != "continual" or before[:1] not in ([], ["echo"]):
        return in_a_shell(line)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{' '.join(before[1:])}\n".encode())))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capsys.readouterr()
    assert not stopped.value.code, f"{line}\n{captured.out}\n{captured.err}"
    return captured.out


def test_the_readme_has_the_two_commands() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = [line.removeprefix("$ make ") for line in README.splitlines() if line.startswith("$ make ")]
    assert commands == ["demo", "test"]
    for target in commands:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_the_stream_shown_is_the_repositorys() -> None:
    shown = next(body for kind, body in BLOCKS if kind == "yaml")
    assert shown == (ROOT / "docs" / "examples" / "helpdesk.yaml").read_text(encoding="utf-8")


def test_blocks_in_order(
    clone: Path, minilm: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands and Python in order, each in the state that the earlier ones produced."""
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(clone)
    executed = 0
    for kind, body in BLOCKS:
        if kind == "python":
            assert run_python("-c", body, cwd=clone).count("\n") == 3
            executed += 1
        for line in body.splitlines():
            if kind == "console" and line.startswith("$ ") and not line.startswith("$ make"):
                assert answered(line.removeprefix("$ "), monkeypatch, capsys).strip()
                executed += 1
    assert executed >= 12
