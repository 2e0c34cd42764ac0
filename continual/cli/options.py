"""Shared parts of the commands: common options, registration of commands, and output."""

import functools
import inspect
import json
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from rich.console import Console
from rich.markup import escape

from continual.escaping import escape_control_characters
from continual.settings import DEFAULT_HOME, DISTRIBUTION, Locations, resolve_locations
from registry import DatabaseDamaged, Registry, file_damage, find_row_damage, holds_registry
from tasks.errors import ContinualError, InputError

if TYPE_CHECKING:
    from continual.learner import Learner

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
out = Console()
err = Console(stderr=True)  # progress and messages; standard output holds only the answer

BackboneName = Annotated[
    str | None,
    typer.Option("--backbone", envvar="CONTINUAL_BACKBONE", help="A name (minilm), a hub id or a folder."),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Maximum number of rows.")]
AfterName = Annotated[str | None, typer.Option("--after", help="The name in the last row of the previous page.")]
AfterRow = Annotated[int | None, typer.Option("--after", min=1, help="The id of the last row of the previous page.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write the result as an HTML page.")]
TaskName = Annotated[str | None, typer.Option("--task", help="The name of a task.")]
RouterName = Annotated[str, typer.Option("--router", help="auto, ridge, mahalanobis, or one of an installed package.")]
AbstentionRate = Annotated[
    float,
    typer.Option(
        "--abstain", min=0, max=1, help="Share of inputs of learned tasks that may be refused; 0 refuses none."
    ),
]


@dataclass(frozen=True)
class CommonOptions:
    """The options that every command takes, after its name.

    Attributes:
        home: Folder of the registry, the blobs and MLflow's store.
        device: As for `load_backbone`.
        dtype: As for `load_backbone`.
        bits: As for `load_backbone`.
        json: Print one JSON document instead of tables.
    """

    home: Annotated[
        Path, typer.Option(envvar="CONTINUAL_HOME", help="Folder of the registry, the blobs and MLflow's store.")
    ] = DEFAULT_HOME
    device: Annotated[
        str, typer.Option(envvar="CONTINUAL_DEVICE", help="auto, cpu, cuda, or split to spread over all devices.")
    ] = "auto"
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16: the type of matrix products.")] = "auto"
    bits: Annotated[int | None, typer.Option(help="8 or 4: quantise the backbone's weights.")] = None
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False

    @property
    def locations(self) -> Locations:
        """The URLs of the registry, the blobs and MLflow's store."""
        return resolve_locations(self.home)

    def registry(self, *, create: bool = False) -> Registry:
        """Open the registry.

        Args:
            create: Create it where there is none; otherwise one without rows, in memory, stands for it.

        Raises:
            InputError: The home is not there, and folders of nearly its name hold a registry.
            RegistryMissing: There is none, though the blob store holds blobs.
        """
        places = self.locations
        if existing := Registry.open_existing(places.registry, places.blobs):
            return existing
        if not create and not places.home.exists() and (near := self._near_homes()):
            raise InputError(f"there is no folder {places.home}; near it are {', '.join(near)}. Correct --home.")
        return Registry.open(places.registry, places.blobs) if create else Registry.empty(places.blobs)

    def _near_homes(self) -> list[str]:
        """Return the folders beside the home that have nearly its name and hold a registry."""
        homes = [file.parent.name for file in self.locations.home.parent.glob("*/registry.db")]
        return get_close_matches(self.home.name, homes, n=3)

    @contextmanager
    def writable_registry(self) -> Iterator[Registry]:
        """Open the registry, and send its changes to MLflow in the background until the block ends."""
        from continual.tracking import background_sender

        with self.registry() as registry, background_sender(registry, self.locations):
            yield registry

    def learner(self, backbone: str | None, *, create: bool = False) -> "Learner":
        """Open a learner on the named backbone, or on the only registered one.

        Args:
            backbone: The backbone's name, hub id or folder.
            create: Create the registry where there is none.

        Raises:
            InputError: No backbone is named, and not exactly one is registered; or there is no registry.
            RegistryMissing: There is none, though the blob store holds blobs.
        """
        name = backbone or self.only_backbone()
        if not create and not holds_registry(self.locations.registry):
            raise InputError(
                f"there is no registry at {self.locations.registry}, so nothing is learned yet. Learn a task first, or "
                "give another --home."
            )
        with err.status(escape(escape_control_characters(f"loading backbone {name}"))):
            from continual.learner import Learner

            return Learner.open(name, self.home, device=self.device, dtype=self.dtype, bits=self.bits)

    def _has_bits(self, name: str) -> bool:
        from continual.backbones.quantization import plain_name

        return self.bits in (None, plain_name(name)[1])

    def only_backbone(self) -> str:
        """Return the name of the only registered backbone, among those of `bits` if these are given.

        Raises:
            InputError: There is none, or there are several.
        """
        with self.registry() as registry:
            registered = [backbone.name for backbone in registry.backbones()]
        names = [name for name in registered if self._has_bits(name)]
        if registered and not names:
            raise InputError(
                f"no backbone of {self.bits} bits is registered, but {', '.join(registered)}; name what to load: "
                "--backbone"
            )
        if not names:
            raise InputError(
                "no backbone is named, and none is registered; write `backbone: minilm`, or give --backbone"
            )
        if len(names) > 1:
            raise InputError(f"several backbones are registered; choose one with --backbone: {', '.join(names)}")
        return names[0]


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"continual {version(DISTRIBUTION)}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Continual multi-task learning: one frozen transformer, one small delta per task, and a registry of them."""


def command(parent: typer.Typer, name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds a command to `parent`.

    The decorated function takes `CommonOptions` first, then its own arguments; the command takes the common options
    as well.

    Args:
        parent: The application or group that gets the command.
        name: The command's name; by default the function's.
    """
    return lambda function: parent.command(name)(_with_common(function))


def group(name: str) -> Callable[[Callable[..., None]], typer.Typer]:
    """Return a decorator that adds a group of commands; without one of them, the group runs the function.

    The function is as for `command`.

    Args:
        name: The group's name.
    """
    return lambda function: _group(name, function)


def _group(name: str, function: Callable[..., None]) -> typer.Typer:
    def callback(common: CommonOptions, *, context: typer.Context, **arguments: Any) -> None:
        if context.invoked_subcommand is None:
            function(common, **arguments)

    first, *parameters = inspect.signature(function).parameters.values()
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    callback.__signature__ = inspect.Signature([first, context, *parameters])  # type: ignore[attr-defined]
    callback.__doc__ = function.__doc__
    subcommands = typer.Typer()
    subcommands.callback(invoke_without_command=True)(_with_common(callback))
    app.add_typer(subcommands, name=name)
    return subcommands


def _with_common(function: Callable[..., None]) -> Callable[..., None]:
    """Replace the first parameter, of `CommonOptions`, by one option for each of its fields."""
    hints = get_type_hints(CommonOptions, include_extras=True)
    specific = list(inspect.signature(function).parameters.values())[1:]
    shared = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in fields(CommonOptions)
    ]

    @functools.wraps(function)
    def wrapper(**arguments: Any) -> None:
        common = CommonOptions(**{f.name: arguments.pop(f.name) for f in fields(CommonOptions)})
        with _naming_damage(common):
            function(common, **arguments)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in specific] + shared
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


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
    if damage := file_damage(common.locations.registry):
        return damage
    try:
        with common.registry() as registry:
            return [f"the registry is damaged: {problem}" for problem in find_row_damage(registry)]
    except ContinualError:  # it cannot be opened: what has failed is something else
        return []


def print_rows(common: CommonOptions, rows: list[dict[str, Any]], *, title: str, hidden: Collection[str] = ()) -> None:
    """Print rows on standard output: a JSON array with `--json`, a table otherwise.

    Args:
        common: The common options.
        rows: The rows, all with the same keys.
        title: The table's title.
        hidden: Columns that the table leaves out.
    """
    from continual.cli.tables import listing

    if common.json:
        print_json(rows)
    else:
        out.print(escape_control_characters(title if rows else f"{title}: none"), style="bold", markup=False)
        if rows:
            out.print(listing(rows, hidden=hidden))


def print_message(message: str, *, style: str | None = None) -> None:
    """Print a message on standard error, unwrapped, since messages are searched for and pasted."""
    err.print(escape_control_characters(message), style=style, markup=False, highlight=False, soft_wrap=True)


def print_json(document: Any) -> None:
    """Print a JSON document on standard output."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
