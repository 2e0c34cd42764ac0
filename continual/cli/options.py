"""Shared options of the commands, and their output."""

import json
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from continual.escaping import escape_control_characters
from continual.settings import DEFAULT_HOME, Locations, resolve_locations
from tasks.errors import InputError

if TYPE_CHECKING:
    from continual.learner import Learner
    from registry import Registry

out = Console()
err = Console(stderr=True)  # progress and messages; standard output holds only the answer

BackboneName = Annotated[
    str | None,
    typer.Option(
        "--backbone", envvar="CONTINUAL_BACKBONE", help="A name (minilm, mpnet, smollm2), a hub id or a folder."
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Maximum number of rows.")]
AfterName = Annotated[str | None, typer.Option("--after", help="The name in the last row of the previous page.")]
AfterRow = Annotated[int | None, typer.Option("--after", min=1, help="The id of the last row of the previous page.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write the result as an HTML page.")]
Device = Annotated[
    str,
    typer.Option("--device", envvar="CONTINUAL_DEVICE", help="auto, cpu, cuda, or split over all devices."),
]
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
        json: Print one JSON document instead of tables.
    """

    home: Annotated[
        Path, typer.Option(envvar="CONTINUAL_HOME", help="Folder of the registry, the blobs and MLflow's store.")
    ] = DEFAULT_HOME
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False

    @property
    def locations(self) -> Locations:
        """The URLs of the registry, the blobs and MLflow's store."""
        return resolve_locations(self.home)

    def registry(self, *, create: bool = False) -> "Registry":
        """Open the registry.

        Args:
            create: Create it where there is none; otherwise one without rows, in memory, stands for it.

        Raises:
            InputError: The home is not there, and folders of nearly its name hold a registry.
            RegistryMissing: There is none, though the blob store holds blobs.
        """
        from registry import Registry

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
    def writable_registry(self) -> "Iterator[Registry]":
        """Open the registry, and send its changes to MLflow in the background until the block ends."""
        from continual.tracking import background_sender

        with self.registry() as registry, background_sender(registry, self.locations):
            yield registry


@dataclass(frozen=True)
class BackboneOptions(CommonOptions):
    """The options of commands that load a backbone.

    Attributes:
        device: As for `load_backbone`.
        dtype: As for `load_backbone`.
        bits: As for `load_backbone`.
    """

    device: Device = "auto"
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16: the type of matrix products.")] = "auto"
    bits: Annotated[int | None, typer.Option(help="8 or 4: quantise the backbone's weights.")] = None

    def learner(self, backbone: str | None, *, create: bool = False) -> "Learner":
        """Open a learner on the named backbone, or on the only registered one.

        Args:
            backbone: The backbone's name, hub id or folder.
            create: Create the registry where there is none.

        Raises:
            InputError: No backbone is named, and not exactly one is registered; or there is no registry.
            RegistryMissing: There is none, though the blob store holds blobs.
        """
        from registry import holds_registry

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


def print_rows(common: CommonOptions, rows: list[dict[str, Any]], *, title: str, hidden: Collection[str] = ()) -> None:
    """Print rows on standard output: a JSON array with `--json`, a table otherwise.

    Args:
        common: The common options.
        rows: The rows, all with the same keys.
        title: The table's title.
        hidden: Columns that the table leaves out.
    """
    from continual.cli.table_layout import print_table, print_text
    from continual.cli.tables import listing
    from registry import redact

    if common.json:
        print_json(rows)
    else:
        print_text(out, title if rows else f"{title}: none in {redact(common.locations.registry)}", style="bold")
        if rows:
            print_table(out, listing(rows, hidden=hidden))


def print_message(message: str, *, style: str | None = None) -> None:
    """Print a message on standard error, unwrapped, since messages are searched for and pasted."""
    err.print(escape_control_characters(message), style=style, markup=False, highlight=False, soft_wrap=True)


def print_json(document: Any) -> None:
    """Print a JSON document on standard output."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def print_address(
    common: CommonOptions, url: str, *, message: str, announce: Callable[[str], None] = print_message
) -> None:
    """Say where a server listens, with `--json` as `{"url": …}` on standard output too."""
    announce(f"{message} {url}")
    if common.json:
        print_json({"url": url})
