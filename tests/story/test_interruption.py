"""Ctrl-C: exit code 130 and one line that says what is kept and how to go on."""

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from continual.callbacks import RunCallbacks
from continual.cli.options import BackboneOptions
from tests.helpers.cli import CliResult, CliRunner
from tests.helpers.tiny_tasks import write_task


@pytest.fixture
def stream(tmp_path: Path, bert_folder: Path) -> Path:
    budget = {"epochs": 1, "batch_size": 8, "learning_rate": 1.0e-2, "max_length": 16}
    tasks = [write_task(tmp_path, task) for task in ("animals", "mood")]
    content = {"name": "small", "backbone": str(bert_folder), "warm_start": "scratch", "budget": budget, "tasks": tasks}
    file = tmp_path / "my stream.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def last_line(result: CliResult) -> str:
    assert result.code == 130
    assert result.out == ""
    assert "Traceback" not in result.err
    return result.err.rstrip().splitlines()[-1]


def test_a_run_keeps_what_is_learned_and_says_how_to_go_on(
    cli: CliRunner, stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def interrupt_mood(*_: object) -> Iterator[RunCallbacks]:
        yield RunCallbacks(on_step=lambda task, *_: signal.raise_signal(signal.SIGINT) if task == "mood" else None)

    with monkeypatch.context() as patched:
        patched.setattr("continual.cli.progress.progress_bars", interrupt_mood)
        line = last_line(cli("run", str(stream)))
    assert line.startswith("interrupted: tasks that are learned are kept")
    command = line.partition("Go on with: continual ")[2]
    assert [row["delta"] for row in cli("deltas", "--json").json] == ["animals@1"]
    words = shlex.split(command)
    assert words == ["run", str(stream), "--home", str(tmp_path / "home")]
    assert cli(*words[:2], "--json").json["tasks"] == ["animals", "mood"]


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["learn", "STREAM", "--task", "mood"], "earlier ones serve as before"),
        (["compare", "STREAM"], "tasks that a strategy has learned are kept"),
        (["study", "convergence", "STREAM"], "trials that were run are kept"),
        (["migrate", "--to", "other"], "tasks that are learned are kept"),
        (["predict"], "answers that were printed are complete"),
        (["audit", "STREAM"], "interrupted. Go on"),
    ],
)
def test_every_command_says_how_to_go_on(
    cli: CliRunner, stream: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], kept: str
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(BackboneOptions, "learner", interrupt)
    given = [word.replace("STREAM", str(stream)) for word in words]
    line = last_line(cli(*given))
    assert kept in line
    assert f"Go on with: continual {shlex.join(given)} --home " in line


def test_watching_ends_with_how_to_go_on(cli: CliRunner, bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "continual.streams.arrivals.ArrivalWorker._learn_next", lambda _: signal.raise_signal(signal.SIGINT)
    )
    ended = cli("watch", "registry", "--backbone", str(bert_folder))
    assert (ended.code, "Traceback" in ended.err) == (130, False)
    assert "arrivals that are not learned wait. Go on with: continual watch registry --backbone" in ended.err
