"""The command that moves learned tasks to another backbone."""

from dataclasses import asdict
from typing import Annotated

import typer

from continual.cli.commands import LEARNED_IS_KEPT, app, command
from continual.cli.options import BackboneOptions, err, print_message, print_rows


@command(
    app,
    examples=[
        "continual migrate --to models/new-backbone --check",
        "continual migrate --to models/new-backbone --tasks billing,delivery",
    ],
    remaining=LEARNED_IS_KEPT,
)
def migrate(
    common: BackboneOptions,
    to: Annotated[
        str, typer.Option("--to", metavar="BACKBONE", help="The new backbone: a name, a hub id or a folder.")
    ],
    origin: Annotated[
        str | None,
        typer.Option("--from", metavar="BACKBONE", help="The old backbone: its registered name or fingerprint."),
    ] = None,
    tasks: Annotated[str | None, typer.Option(metavar="A,B,…", help="Names of tasks; by default all.")] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the migration's stream; give a new one to migrate a task's later version too."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only check all tasks and estimate their costs; learn nothing.")
    ] = False,
) -> None:
    """Learn the champions' tasks again on a new backbone; those on the old backbone go on serving."""
    names = None if tasks is None else [task.strip() for task in tasks.split(",")]
    with common.learner(to, create=True) as learner:
        from continual.streams.migration.outcome import estimate_migration
        from continual.streams.migration.plan import plan_migration

        if check:
            migration = plan_migration(learner.backbone, learner.registry, origin=origin, tasks=names, name=name)
            rows = [asdict(row) for row in estimate_migration(migration)]
            print_rows(common, rows, title="What it would take")
            return
        from continual.cli.progress import progress_bars

        with progress_bars(err, [row["task"] for row in learner.registry.tasks()]) as callbacks:
            rows = [asdict(row) for row in learner.migrate(origin, names, name=name, callbacks=callbacks)]
    print_rows(common, rows, title="Migrated", hidden=["task", "state", "old_score", "new_score"])
    failed = [row for row in rows if row["state"] == "failed"]
    for row in failed:
        print_message(f"task {row['task']} failed: {row['reason']}", style="red")
    if failed:
        raise typer.Exit(1)
