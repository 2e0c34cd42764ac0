"""Commands that ask what has been learned."""

from typing import Annotated

import typer

from continual.cli.options import BackboneName, Common, TaskName, answer, app, command, err, group, out, say


@group("tasks")
def tasks(common: Common) -> None:
    """List the tasks that are registered."""
    with common.registry() as registry:
        answer(common, registry.tasks(), title="Tasks")


@group("deltas")
def deltas(common: Common, task: TaskName = None) -> None:
    """List the deltas that are registered, a row for each version."""
    with common.registry() as registry:
        answer(common, registry.deltas(task), title="Deltas")


@command(app)
def lineage(common: Common, delta: Annotated[str, typer.Argument(help="A delta, such as sst2@1.")]) -> None:
    """List the deltas that a delta came from, how, and with what weight."""
    with common.registry() as registry:
        answer(common, registry.lineage(delta), title=f"Lineage of {delta}")


@command(app)
def similar(common: Common, task: Annotated[str, typer.Argument(help="A learned task.")]) -> None:
    """List the other tasks by how alike they are, from their signatures."""
    with common.registry() as registry:
        from continual.neighbours import similar_tasks

        answer(common, similar_tasks(registry, task), title=f"Tasks like {task}")


@command(app, name="verify")
def verify_registry(
    common: Common,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out what needs the backbone.")] = False,
    backbone: BackboneName = None,
) -> None:
    """Check every row, every blob, the backbones and the champions' answers; exit code 1 where something is wrong."""
    with common.registry() as registry, err.status("verifying"):
        from continual.verify import verify_all

        found = verify_all(registry, quick=quick, backbone=backbone, device=common.device)
    for note in found.notes:
        say(note)
    if common.json or found.problems:
        answer(common, [{"problem": problem} for problem in found.problems], title="Problems")
    else:
        out.print("Every blob and every row is as it was registered.")
    if found.problems:
        raise typer.Exit(1)
