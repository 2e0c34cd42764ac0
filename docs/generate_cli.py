"""Write the reference of the command line from its own help: python docs/generate_cli.py > docs/reference/cli.md."""

import enum
from collections.abc import Iterator
from typing import Any

import typer

from continual.cli import app

COMMON = ("--home", "--device", "--dtype", "--bits", "--json", "--help")
INTRODUCTION = """# Command line

This page is generated from `--help`: `python docs/generate_cli.py > docs/reference/cli.md`.

Every command also takes the [common options](#common-options), after its name. With `--json`, standard output holds one
JSON document; progress and messages go to standard error. `predict` always writes JSON lines. Exit codes are those of
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
    own = [one for one in command.params if one.opts[0] not in COMMON and not one.hidden]
    arguments = [one for one in own if one.param_type_name == "argument"]
    names = [one.metavar or one.name.upper() for one in arguments]
    usage = [name if one.required else f"[{name}]" for one, name in zip(arguments, names, strict=True)]
    lines = [f"## {path.removeprefix('continual ')}", "", "```text", " ".join([path, *usage, "[OPTIONS]"]), "```", ""]
    lines.append(" ".join((command.help or "").split()))
    if own:
        lines += ["", "| argument or option | meaning | default |", "|---|---|---|", *map(row, own)]
    return "\n".join([*lines, ""])


def main() -> None:
    """Print the page."""
    root = typer.main.get_command(app)
    found = [(path, one) for path, one in commands(root, "continual") if path != "continual"]
    common = [one for one in found[0][1].params if one.opts[0] in COMMON[:-1]]
    table = ["| option | meaning | default |", "|---|---|---|", *map(row, common)]
    print(INTRODUCTION)
    print("\n".join(["## Common options", "", *table, "", ENVIRONMENT]))
    print("\n".join(section(path, one) for path, one in found), end="")


main()
