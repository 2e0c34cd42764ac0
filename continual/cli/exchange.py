"""Commands that show what was learned to other tools, or take from them."""

from pathlib import Path
from typing import Annotated

import typer

from continual.cli.options import BackboneName, CommonOptions, app, command, print_message, print_rows
from tasks import read_task


@command(app)
def export(
    common: CommonOptions,
    delta: Annotated[str, typer.Argument(help="A delta, such as sst2@1.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    form: Annotated[str, typer.Option("--format", help="peft, or transformers: the change in the weights.")] = "peft",
    backbone: BackboneName = None,
) -> None:
    """Write a delta as a folder that PEFT or transformers load without this package."""
    with common.registry() as registry:
        own = registry.backbone(registry.delta(delta).backbone).name
    with common.learner(backbone or own) as learner:
        files = learner.export(delta, folder, form=form)
    print_rows(
        common, [{"delta": delta, "format": form, "folder": str(folder), "files": list(files)}], title="Exported"
    )


@command(app, name="import")
def import_folder(
    common: CommonOptions,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that PEFT or `export` wrote.")],
    task: Annotated[str, typer.Option("--task", help="The task whose next version it becomes.")],
    rows: Annotated[Path | None, typer.Option("--rows", help="The task's file: score it on these rows.")] = None,
    backbone: BackboneName = None,
) -> None:
    """Register what PEFT saved as a new version of a task's delta; without rows it has no score."""
    with common.learner(backbone) as learner:
        name = learner.import_peft(folder, task, rows=read_task(rows) if rows else None)
        stored = learner.registry.delta(name)
        print_rows(common, [row for row in learner.registry.deltas(task) if row["delta"] == name], title="Imported")
    reason = f", a {stored.status}: {stored.reason}" if stored.reason else ", and serves"
    print_message(f"{name} is registered{reason}")
