"""Commands on the registry's database."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from continual.cli.commands import app, command
from continual.cli.options import CommonOptions, print_message, print_rows

if TYPE_CHECKING:
    from registry.operations.archive import Manifest

db = typer.Typer(help="Upgrade, dump and restore the registry's database.", no_args_is_help=True)
app.add_typer(db, name="db")


@command(db, name="upgrade", examples=["continual db upgrade"])
def db_upgrade(common: CommonOptions) -> None:
    """Migrate the registry's tables to this version of the code."""
    from registry import upgrade

    revision = upgrade(common.locations.registry)
    print_rows(common, [{"revision": revision}], title="Registry")


@command(db, name="dump", examples=["continual db dump backup.zip"])
def db_dump(common: CommonOptions, file: Annotated[Path, typer.Argument(help="A new file.")]) -> None:
    """Write the whole registry, with all blobs, into one file; a stream may run meanwhile."""
    from registry import dump_registry

    with common.registry() as registry:
        manifest = dump_registry(registry, file)
    print_rows(common, [_summary(file, manifest)], title="Written")


@command(db, name="restore", examples=["continual db restore backup.zip --home new-home"])
def db_restore(
    common: CommonOptions,
    file: Annotated[Path, typer.Argument(help="A file that `db dump` wrote.")],
    with_keys: Annotated[
        bool, typer.Option("--with-keys", help="Keep API keys valid; only for a file that you wrote yourself.")
    ] = False,
) -> None:
    """Restore a dump into an empty registry, in SQLite or PostgreSQL; its API keys are revoked."""
    from registry import restore_registry

    manifest = restore_registry(file, common.locations.registry, common.locations.blobs, with_keys=with_keys)
    keys = manifest.tables.get("api_keys")
    if keys and keys.rows and not with_keys:
        print_message(f"the {keys.rows} API keys of the dump are revoked here; add new ones, or restore it --with-keys")
    print_rows(common, [_summary(file, manifest)], title="Restored")


def _summary(file: Path, manifest: "Manifest") -> dict[str, Any]:
    rows = {name: manifest.tables[name].rows for name in ("tasks", "deltas", "streams", "scores")}
    return {"file": str(file), "revision": manifest.revision, **rows, "blobs": manifest.blobs}
