"""The command line in the process of the tests, as a fixture."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from continual.cli import app, main
from tests.helpers.mlflow_runs import copy_empty_store


@dataclass(frozen=True)
class CliResult:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


CliRunner = Callable[..., CliResult]
LEARNING = ("run", "learn", "watch", "import")  # commands that send runs to MLflow


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CliRunner:
    """Return a function that runs the command line in this process, with an empty home and without an MLflow server."""
    for name in ("CONTINUAL_REGISTRY_URL", "CONTINUAL_BLOBS_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str) -> CliResult:
        if words[0] in LEARNING:
            copy_empty_store(tmp_path / "home")
        monkeypatch.setattr(sys, "argv", ["continual", *words, "--home", str(tmp_path / "home")])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()  # always ends so: the command line leaves with its exit code
        captured = capsys.readouterr()
        return CliResult(int(stopped.value.code or 0), captured.out, captured.err)

    return run


def parse_command(words: Sequence[str]) -> None:
    """Parse the words of a command line without running it; raises the parser's error if they are invalid."""
    _parse(typer.main.get_command(app), words)


def _parse(command: Any, words: Sequence[str]) -> None:
    context = command.make_context("continual", list(words))
    if rest := [*context._protected_args, *context.args]:
        _, subcommand, arguments = command.resolve_command(context, rest)
        _parse(subcommand, arguments)
