"""Commands on the registry's database."""

from pathlib import Path
from typing import Annotated, Any

import typer

from continual.cli.options import CommonOptions, app, command, print_rows
from registry import dump_registry, restore_registry, upgrade
from registry.operations.archive import Manifest

db = typer.Typer(help="The registry's database.", no_args_is_help=True)
app.add_typer(db, name="db")


@command(db, name="upgrade")
def db_upgrade(common: CommonOptions) -> None:
    """Bring the registry's tables up to this version of the code."""
    revision = upgrade(common.locations.registry)
    print_rows(common, [{"revision": revision}], title="Registry")


@command(db, name="dump")
def db_dump(common: CommonOptions, file: Annotated[Path, typer.Argument(help="A new file.")]) -> None:
    """Write the whole registry, with all blobs, into one file; also while a stream is running."""
    with common.registry() as registry:
        manifest = dump_registry(registry, file)
    print_rows(common, [_told(file, manifest)], title="Written")


@command(db, name="restore")
def db_restore(common: CommonOptions, file: Annotated[Path, typer.Argument(help="What `db dump` wrote.")]) -> None:
    """Put what `db dump` wrote into an empty registry, in SQLite or PostgreSQL."""
    manifest = restore_registry(file, common.locations.registry, common.locations.blobs)
    print_rows(common, [_told(file, manifest)], title="Restored")


def _told(file: Path, manifest: Manifest) -> dict[str, Any]:
    rows = {name: manifest.tables[name].rows for name in ("tasks", "deltas", "streams", "scores")}
    return {"file": str(file), "revision": manifest.revision, **rows, "blobs": manifest.blobs}
