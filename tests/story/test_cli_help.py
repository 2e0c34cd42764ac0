"""The help of every command: examples that parse, options that it uses, lines that fit into eighty columns."""

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from continual.cli import app, main

WIDTH = 80
ROOT = typer.main.get_command(app)
LOADS_BACKBONE = {
    *("demo", "run", "learn", "watch", "migrate", "predict", "serve", "similar", "errors", "audit", "compare", "study"),
    *("export", "import"),
}


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", {})
    if path and (not children or command.invoke_without_command):
        yield " ".join(path), command
    for name, child in children.items():
        yield from commands(child, (*path, name))


COMMANDS = dict(commands(ROOT))


def examples(command: Any) -> list[str]:
    return [line.strip() for line in (command.epilog or "").splitlines()[1:]]


def parse(words: list[str]) -> str:
    """Parse a command line by the parsers of its commands, without running it; return the names of the commands."""
    context, command, path = ROOT.make_context("continual", words), ROOT, []
    while rest := [*getattr(context, "_protected_args", ()), *context.args]:
        name, command, words = command.resolve_command(context, rest)  # type: ignore[attr-defined]
        path.append(name)
        context = command.make_context(name, words, parent=context)
    return " ".join(path)


@pytest.mark.parametrize("path", COMMANDS)
def test_every_example_is_accepted_by_its_command(path: str) -> None:
    lines = examples(COMMANDS[path])
    assert lines
    for line in lines:
        words = shlex.split(line.rpartition(" | ")[2].partition(" < ")[0])
        assert words[0] == "continual"
        assert parse(words[1:]) == path
        assert len(line) <= WIDTH - 2, "an example is one line of the help"


@pytest.mark.parametrize("path", COMMANDS)
def test_help_shows_examples_in_eighty_columns(
    path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setattr("sys.argv", ["continual", *path.split(), "-h"])
    with pytest.raises(SystemExit):
        main()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert set(examples(COMMANDS[path])) <= {line.strip() for line in lines}


@pytest.mark.parametrize("path", COMMANDS)
def test_options_of_the_backbone_belong_to_commands_that_load_one(path: str) -> None:
    offered = {parameter.opts[0] for parameter in COMMANDS[path].params} & {"--device", "--dtype", "--bits"}
    everything = path in LOADS_BACKBONE
    expected = {"--device", "--dtype", "--bits"} if everything else {"--device"} if path == "verify" else set()
    assert offered == expected


@pytest.mark.parametrize("path", COMMANDS)
def test_the_help_of_json_says_document_or_lines(path: str) -> None:
    (json,) = (parameter for parameter in COMMANDS[path].params if parameter.opts[0] == "--json")
    assert ("JSON lines" if path == "predict" else "one JSON document") in str(json.help)
