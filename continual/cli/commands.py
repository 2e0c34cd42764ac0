"""Registration of commands: their common options, examples, and what is said when one is interrupted."""

import functools
import inspect
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Annotated, Any, get_type_hints

import typer
from rich.markup import escape

from continual.cli.options import CommonOptions, out, print_message
from continual.settings import DISTRIBUTION
from registry import DatabaseDamaged
from tasks.errors import ContinualError

INTERRUPTED = 130  # exit code: 128 and the number of SIGINT
LEARNED_IS_KEPT = "tasks that are learned are kept, and the one in progress goes on from its last checkpoint"

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        out.print(f"continual {version(DISTRIBUTION)}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Continual multi-task learning: one frozen transformer, one small delta per task, and a registry of them."""


def command(
    parent: typer.Typer, name: str | None = None, *, examples: Sequence[str], remaining: str = ""
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds a command to `parent`.

    The decorated function takes `CommonOptions`, or a subclass of them, first, then its own arguments; the command
    takes the common options as well.

    Args:
        parent: The application or group that gets the command.
        name: The command's name; by default the function's.
        examples: Lines of a shell that use the command, for its help.
        remaining: What an interruption leaves, to be said after Ctrl-C.
    """
    return lambda function: parent.command(name, help=_help(function), epilog=_epilog(examples))(
        _with_common(function, remaining=remaining)
    )


def group(name: str, *, examples: Sequence[str]) -> Callable[[Callable[..., None]], typer.Typer]:
    """Return a decorator that adds a group of commands; without one of them, the group runs the function.

    The function is as for `command`.

    Args:
        name: The group's name.
        examples: As for `command`.
    """
    return lambda function: _group(name, function, examples)


def _help(function: Callable[..., None]) -> str:
    """Return the docstring with each paragraph on one line, to be wrapped to the terminal's width."""
    return "\n\n".join(" ".join(part.split()) for part in (inspect.getdoc(function) or "").split("\n\n"))


def _epilog(examples: Sequence[str]) -> str:
    return "\n".join(["[bold]Examples[/]", *(f"  {escape(example)}" for example in examples)])


def _group(name: str, function: Callable[..., None], examples: Sequence[str]) -> typer.Typer:
    def callback(common: CommonOptions, *, context: typer.Context, **arguments: Any) -> None:
        if context.invoked_subcommand is None:
            function(common, **arguments)

    first, *parameters = inspect.signature(function).parameters.values()
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    callback.__signature__ = inspect.Signature([first, context, *parameters])  # type: ignore[attr-defined]
    callback.__doc__ = function.__doc__
    subcommands = typer.Typer()
    register = subcommands.callback(invoke_without_command=True, help=_help(function), epilog=_epilog(examples))
    register(_with_common(callback))
    app.add_typer(subcommands, name=name)
    return subcommands


def _with_common(function: Callable[..., None], *, remaining: str = "") -> Callable[..., None]:
    """Replace the first parameter, of `CommonOptions` or a subclass, by one option for each field of its class."""
    first, *specific = inspect.signature(function).parameters.values()
    options: type[CommonOptions] = first.annotation
    hints = get_type_hints(options, include_extras=True)
    shared = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in fields(options)
    ]

    @functools.wraps(function)
    def wrapper(**arguments: Any) -> None:
        common = options(**{f.name: arguments.pop(f.name) for f in fields(options)})
        with _explaining_interruption(remaining), _naming_damage(common):
            function(common, **arguments)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in specific] + shared
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


@contextmanager
def _explaining_interruption(remaining: str) -> Iterator[None]:
    """End with one line instead of KeyboardInterrupt: what an interruption leaves, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        again = shlex.join(["continual", *sys.argv[1:]])
        print_message(f"interrupted{remaining and f': {remaining}'}. Go on with: {again}")
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _naming_damage(common: CommonOptions) -> Iterator[None]:
    """Raise DatabaseDamaged in place of an unforeseen error where the registry is damaged: that is why."""
    try:
        yield
    except (ContinualError, typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if damage := _registry_damage(common):
            advice = "`continual verify` lists the damage; restore the registry from a copy, or a dump."
            raise DatabaseDamaged(f"{damage[0]}. {advice}") from error
        raise


def _registry_damage(common: CommonOptions) -> list[str]:
    """Return what is damaged in the registry's file, or else in its rows."""
    from registry import file_damage, find_row_damage

    if damage := file_damage(common.locations.registry):
        return damage
    try:
        with common.registry() as registry:
            return [f"the registry is damaged: {problem}" for problem in find_row_damage(registry)]
    except ContinualError:  # it cannot be opened: what has failed is something else
        return []
