"""Commands on MLflow, which shows what the registry knows."""

from dataclasses import asdict
from typing import Annotated

import typer

from continual.cli.options import CommonOptions, app, command, group, print_rows
from registry import list_pending


@group("mlflow")
def mlflow(common: CommonOptions) -> None:
    """List what MLflow has not been told yet, with why the last attempt failed."""
    with common.registry() as registry:
        rows = [asdict(pending) | {"due_at": pending.due_at.isoformat()} for pending in list_pending(registry)]
    print_rows(common, rows, title="Not told to MLflow yet")


@command(mlflow)
def sync(common: CommonOptions) -> None:
    """Tell MLflow all that it missed; exit code 1 where something could not be told."""
    from continual.tracking import flush_outbox as sync_mlflow

    with common.registry() as registry:
        sent = list(sync_mlflow(registry, common.locations))
    rows = [{"message": s.pending.message, "subject": s.pending.subject, "error": s.error} for s in sent]
    print_rows(common, rows, title="Told to MLflow")
    if any(row["error"] for row in rows):
        raise typer.Exit(1)


@command(app)
def ui(
    common: CommonOptions,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5000,
) -> None:
    """Serve MLflow's pages on what was learned, after sending MLflow what it missed."""
    from continual.tracking import flush_outbox as sync_mlflow
    from continual.tracking import serve_ui, warn_unsent

    with common.registry() as registry:
        list(sync_mlflow(registry, common.locations))
        warn_unsent(registry, common.locations)
    raise typer.Exit(serve_ui(common.locations, host=host, port=port))
