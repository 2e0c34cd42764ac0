"""Write the reference of the command line from its own help: python docs/generate_cli.py > docs/reference/cli.md."""

import enum
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import typer

from continual.cli import app
from continual.cli.options import BackboneOptions, CommonOptions

COMMON = [f"--{field.name}" for field in fields(CommonOptions)]
BACKBONE = [f"--{field.name}" for field in fields(BackboneOptions) if f"--{field.name}" not in COMMON]
INTRODUCTION = """# Command line

This page is generated from `--help`: `python docs/generate_cli.py > docs/reference/cli.md`.

Every command also takes the [common options](#common-options), after its name, and commands that load a backbone the
[options of the backbone](#options-of-the-backbone). With `--json`, standard output holds one JSON document; progress
and messages go to standard error. `predict` always writes JSON lines. Exit codes are those of
[errors](errors.md#exit-codes).
"""
ENVIRONMENT = """Three environment variables override parts of `--home`:

| variable | replaces | example |
|---|---|---|
| `CONTINUAL_REGISTRY_URL` | `HOME/registry.db` | `postgresql+psycopg://user:secret@host/continual` |
| `CONTINUAL_BLOBS_URL` | `HOME/blobs/` | a folder, `s3://bucket/blobs`, `gs://bucket/blobs` |
| `MLFLOW_TRACKING_URI` | `HOME/mlflow.db`, `HOME/mlflow-artifacts/` | `http://host:5000` |
"""


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every command that does something by itself, with its full name."""
    children = getattr(command, "commands", {})
    if not children or command.invoke_without_command:
        yield path, command
    for name, child in children.items():
        yield from commands(child, f"{path} {name}")


def value_name(parameter: Any) -> str:
    """Return what a parameter takes: nothing for a flag, else the name of its type."""
    kind = parameter.type_descriptor.annotation
    if kind is bool:
        return ""
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return " " + "\\|".join(str(member.value) for member in kind)
    name = {"Path": "PATH", "str": "TEXT", "int": "INT", "float": "FLOAT"}.get(getattr(kind, "__name__", ""), "TEXT")
    return f" {parameter.metavar or name}"


def default_of(parameter: Any) -> str:
    """Return the default of a parameter as a table cell."""
    if parameter.required:
        return "required"
    found = parameter.default() if callable(parameter.default) else parameter.default
    return "" if found in (None, False, [], ()) else f"`{found}`"


def row(parameter: Any) -> str:
    """Return the table row of an argument or option."""
    argument = parameter.param_type_name == "argument"
    shown = parameter.metavar or parameter.name.upper() if argument else parameter.opts[0] + value_name(parameter)
    help_text = (parameter.help or "").replace("|", "\\|")
    return f"| `{shown}` | {help_text} | {default_of(parameter)} |"


def section(path: str, command: Any) -> str:
    """Return the section of one command."""
    loads_backbone = {*BACKBONE} <= {one.opts[0] for one in command.params}
    shared = {*COMMON, "--help", *(BACKBONE if loads_backbone else ())}
    own = [one for one in command.params if one.opts[0] not in shared and not one.hidden]
    arguments = [one for one in own if one.param_type_name == "argument"]
    names = [one.metavar or one.name.upper() for one in arguments]
    usage = [name if one.required else f"[{name}]" for one, name in zip(arguments, names, strict=True)]
    examples = [line.strip() for line in (command.epilog or "").splitlines()[1:]]
    lines = [f"## {path.removeprefix('continual ')}", "", "```text", " ".join([path, *usage, "[OPTIONS]"]), "```", ""]
    lines.append(" ".join((command.help or "").split()))
    if loads_backbone:
        lines.append("It takes the [options of the backbone](#options-of-the-backbone) too.")
    lines += ["", "```shell", *examples, "```"]
    if own:
        lines += ["", "| argument or option | meaning | default |", "|---|---|---|", *map(row, own)]
    return "\n".join([*lines, ""])


def main() -> None:
    """Print the page."""
    root = typer.main.get_command(app)
    found = [(path, one) for path, one in commands(root, "continual") if path != "continual"]
    parameters = {one.opts[0]: one for _, command in found for one in reversed(command.params)}
    heading = ["| option | meaning | default |", "|---|---|---|"]
    print(INTRODUCTION)
    print("\n".join(["## Common options", "", *heading, *(row(parameters[name]) for name in COMMON), "", ENVIRONMENT]))
    print("\n".join(["## Options of the backbone", "", *heading, *(row(parameters[name]) for name in BACKBONE), ""]))
    print("\n".join(section(path, one) for path, one in found), end="")


main()
