"""Commands on MLflow, which shows what the registry knows."""

from dataclasses import asdict
from typing import Annotated

import typer

from continual.cli.options import Common, answer, app, command, group
from registry import waiting


@group("mlflow")
def mlflow(common: Common) -> None:
    """List what MLflow has not been told yet, with why the last attempt failed."""
    with common.registry() as registry:
        rows = [asdict(pending) | {"due_at": pending.due_at.isoformat()} for pending in waiting(registry)]
    answer(common, rows, title="Not told to MLflow yet")


@command(mlflow)
def sync(common: Common) -> None:
    """Tell MLflow all that it missed; exit code 1 where something could not be told."""
    from continual.tracking import sync as sync_mlflow

    with common.registry() as registry:
        sent = list(sync_mlflow(registry, common.places))
    rows = [{"message": s.pending.message, "subject": s.pending.subject, "error": s.error} for s in sent]
    answer(common, rows, title="Told to MLflow")
    if any(row["error"] for row in rows):
        raise typer.Exit(1)


@command(app)
def ui(
    common: Common,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5000,
) -> None:
    """Serve MLflow's pages on what was learned, after sending MLflow what it missed."""
    from continual.tracking import serve_ui, warn_of_rest
    from continual.tracking import sync as sync_mlflow

    with common.registry() as registry:
        list(sync_mlflow(registry, common.places))
        warn_of_rest(registry, common.places)
    raise typer.Exit(serve_ui(common.places, host=host, port=port))
