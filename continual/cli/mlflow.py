"""Commands on MLflow, which mirrors the registry."""

from dataclasses import asdict
from typing import Annotated

import typer

from continual.cli.commands import app, command, group
from continual.cli.options import CommonOptions, print_address, print_rows


@group("mlflow", examples=["continual mlflow"])
def mlflow(common: CommonOptions) -> None:
    """List the messages that were not sent to MLflow yet, with the error of the last attempt."""
    from registry import list_pending

    with common.registry() as registry:
        rows = [asdict(pending) | {"due_at": pending.due_at.isoformat()} for pending in list_pending(registry)]
    print_rows(common, rows, title="Not sent to MLflow yet")


@command(mlflow, examples=["continual mlflow sync"])
def sync(common: CommonOptions) -> None:
    """Send MLflow all messages that it missed; exit code 1 if one cannot be sent."""
    from continual.tracking import flush_outbox

    with common.registry() as registry:
        sent = list(flush_outbox(registry, common.locations))
    rows = [{"message": s.pending.message, "subject": s.pending.subject, "error": s.error} for s in sent]
    print_rows(common, rows, title="Told to MLflow")
    if any(row["error"] for row in rows):
        raise typer.Exit(1)


@command(app, examples=["continual ui --port 5001"])
def ui(
    common: CommonOptions,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5000,
) -> None:
    """Send MLflow all messages that it missed, and serve its web interface."""
    from continual.tracking import flush_outbox, serve_ui, warn_unsent

    with common.registry() as registry:
        list(flush_outbox(registry, common.locations))
        warn_unsent(registry, common.locations)

    def on_address(url: str) -> None:
        print_address(common, url, message="runs are at")

    raise typer.Exit(serve_ui(common.locations, host=host, port=port, on_address=on_address))
