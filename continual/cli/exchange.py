"""Commands that export deltas to other tools and import them."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from continual.cli.commands import app, command
from continual.cli.options import BackboneName, BackboneOptions, print_message, print_rows


@command(
    app,
    examples=[
        "continual export billing@1 billing-adapter",
        "continual export billing@1 billing-model --format transformers",
    ],
)
def export(
    common: BackboneOptions,
    delta: Annotated[str, typer.Argument(help="A delta, such as sst2@1.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="peft: an adapter for PEFT; transformers: a whole model, with the head in it where pipeline answers.",
        ),
    ] = "peft",
    backbone: BackboneName = None,
) -> None:
    """Export a delta as a folder that PEFT or transformers load without this package."""
    with common.registry() as registry:
        trained_on = registry.backbone(registry.delta(delta).backbone).name
    exact = replace(common, dtype="float32") if common.dtype == "auto" else common  # merged weights must not be rounded
    with exact.learner(backbone or trained_on) as learner:
        files = learner.export(delta, folder, form=form)
    print_rows(
        common, [{"delta": delta, "format": form, "folder": str(folder), "files": list(files)}], title="Exported"
    )


@command(app, name="import", examples=["continual import billing-adapter --task billing --rows billing.yaml"])
def import_folder(
    common: BackboneOptions,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that PEFT or `export` wrote.")],
    task: Annotated[str, typer.Option("--task", help="The task that gets the delta as its next version.")],
    rows: Annotated[
        Path | None, typer.Option("--rows", help="The task's file: score the delta on its rows; else it has no score.")
    ] = None,
    backbone: BackboneName = None,
) -> None:
    """Register an adapter that PEFT saved as a new version of a task's delta."""
    from tasks import read_task

    with common.learner(backbone, create=True) as learner:
        name = learner.import_peft(folder, task, rows=read_task(rows) if rows else None)
        stored = learner.registry.delta(name)
        print_rows(common, [row for row in learner.registry.deltas(task) if row["delta"] == name], title="Imported")
    reason = f", a {stored.status}: {stored.reason}" if stored.reason else ", and serves"
    print_message(f"{name} is registered{reason}")
