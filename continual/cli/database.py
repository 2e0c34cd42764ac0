"""Commands on the registry's database."""

import typer

from continual.cli.options import Common, answer, app, command
from registry import upgrade

db = typer.Typer(help="The registry's database.", no_args_is_help=True)
app.add_typer(db, name="db")


@command(db, name="upgrade")
def db_upgrade(common: Common) -> None:
    """Bring the registry's tables up to this version of the code."""
    revision = upgrade(common.places.registry)
    answer(common, [{"revision": revision}], title="Registry")
