"""What the commands share: the options that every one of them takes, and how it answers."""

import functools
import inspect
import json
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from rich.console import Console
from rich.markup import escape

from continual.escaping import escape_control_characters
from continual.settings import DEFAULT_HOME, Locations, resolve_locations
from registry import Registry
from tasks.errors import InputError

if TYPE_CHECKING:
    from continual.learner import Learner

app = typer.Typer(
    help="Continual multi-task learning: one frozen transformer, one small delta per task, a registry that remembers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()
err = Console(stderr=True)  # progress and messages; standard output is the answer's alone

BackboneName = Annotated[str | None, typer.Option("--backbone", help="A name (minilm), a hub id or a folder.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="At most so many rows.")]
AfterName = Annotated[str | None, typer.Option("--after", help="The name in the last row of the page before.")]
AfterRow = Annotated[int | None, typer.Option("--after", min=1, help="The id of the last row of the page before.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write it as a page to show to others, too.")]
TaskName = Annotated[str | None, typer.Option("--task", help="The name of a task.")]


@dataclass(frozen=True)
class CommonOptions:
    """The options that every command takes, after its name."""

    home: Annotated[Path, typer.Option(help="Folder of the registry, the blobs and MLflow's store.")] = DEFAULT_HOME
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or split over all there are.")] = "auto"
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16: the type of matrix products.")] = "auto"
    bits: Annotated[int | None, typer.Option(help="8 or 4: quantise the backbone's weights.")] = None
    json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False

    @property
    def locations(self) -> Locations:
        return resolve_locations(self.home)

    def registry(self) -> Registry:
        return Registry.open(self.locations.registry, self.locations.blobs)

    @contextmanager
    def writable_registry(self) -> Iterator[Registry]:
        """The registry, and MLflow told of what is done to it."""
        from continual.tracking import background_sender

        with self.registry() as registry, background_sender(registry, self.locations):
            yield registry

    def learner(self, backbone: str | None) -> "Learner":
        """The registry with the backbone that is named or, where none is, the only one it knows of these bits."""
        name = backbone or self.only_backbone()
        with err.status(escape(escape_control_characters(f"loading backbone {name}"))):
            from continual.learner import Learner

            return Learner.open(name, self.home, device=self.device, dtype=self.dtype, bits=self.bits)

    def _may_be(self, name: str) -> bool:
        from continual.backbones.quantization import plain_name

        return self.bits in (None, plain_name(name)[1])

    def only_backbone(self) -> str:
        with self.registry() as registry:
            known = [backbone.name for backbone in registry.backbones()]
        names = [name for name in known if self._may_be(name)]
        if known and not names:
            raise InputError(
                f"no backbone of {self.bits} bits is registered, but {', '.join(known)}; name what to load: --backbone"
            )
        if not names:
            raise InputError(
                "no backbone is named, and none is registered; write `backbone: minilm`, or give --backbone"
            )
        if len(names) > 1:
            raise InputError(f"several backbones are registered; choose one with --backbone: {', '.join(names)}")
        return names[0]


def command(of: typer.Typer, name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function of `Common` and its own arguments a command that takes the common options as well."""
    return lambda function: of.command(name)(_with_common(function))


def group(name: str) -> Callable[[Callable[..., None]], typer.Typer]:
    """The same of a command that has commands of its own, and without one of them runs the function."""
    return lambda function: _group(name, function)


def _group(name: str, function: Callable[..., None]) -> typer.Typer:
    def alone(common: CommonOptions, *, context: typer.Context, **arguments: Any) -> None:
        if context.invoked_subcommand is None:
            function(common, **arguments)

    first, *own = inspect.signature(function).parameters.values()
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    alone.__signature__ = inspect.Signature([first, context, *own])  # type: ignore[attr-defined]
    alone.__doc__ = function.__doc__
    of = typer.Typer()
    of.callback(invoke_without_command=True)(_with_common(alone))
    app.add_typer(of, name=name)
    return of


def _with_common(function: Callable[..., None]) -> Callable[..., None]:
    hints = get_type_hints(CommonOptions, include_extras=True)
    own = list(inspect.signature(function).parameters.values())[1:]
    shared = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in fields(CommonOptions)
    ]

    @functools.wraps(function)
    def called(**arguments: Any) -> None:
        common = CommonOptions(**{f.name: arguments.pop(f.name) for f in fields(CommonOptions)})
        function(common, **arguments)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + shared
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    return called


def print_rows(
    common: CommonOptions, rows: list[dict[str, Any]], *, title: str, left_out: Collection[str] = ()
) -> None:
    """Rows on standard output: a JSON array with `--json`, a table otherwise, without the columns `left_out`."""
    from continual.cli.tables import listing

    if common.json:
        print_json(rows)
    else:
        out.print(escape_control_characters(title if rows else f"{title}: none"), style="bold", markup=False)
        if rows:
            out.print(listing(rows, left_out=left_out))


def print_message(message: str, *, style: str | None = None) -> None:
    """A message on standard error, as it is: it is searched and pasted whole."""
    err.print(escape_control_characters(message), style=style, markup=False, highlight=False, soft_wrap=True)


def print_json(document: Any) -> None:
    """A JSON document on standard output."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
