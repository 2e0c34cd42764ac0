"""Commands that ask what has been learned."""

import sys
from typing import Annotated

import typer

from continual.cli import lineage_graph
from continual.cli.options import (
    AfterName,
    BackboneName,
    CommonOptions,
    Limit,
    TaskName,
    app,
    command,
    err,
    group,
    out,
    print_message,
    print_rows,
)
from tasks.errors import InputError


@group("tasks")
def tasks(common: CommonOptions, limit: Limit = None, after: AfterName = None) -> None:
    """List the tasks that are registered."""
    with common.registry() as registry:
        print_rows(common, registry.tasks(limit=limit, after=after), title="Tasks")


@group("deltas")
def deltas(common: CommonOptions, task: TaskName = None, limit: Limit = None, after: AfterName = None) -> None:
    """List the deltas that are registered, a row for each version."""
    with common.registry() as registry:
        print_rows(common, registry.deltas(task, limit=limit, after=after), title="Deltas")


@command(app)
def lineage(
    common: CommonOptions,
    delta: Annotated[str, typer.Argument(help="A delta, such as sst2@1.")],
    descendants: Annotated[
        bool, typer.Option("--descendants", help="What came from it, not what it came from.")
    ] = False,
    depth: Annotated[int | None, typer.Option(min=1, help="At most so many steps away.")] = None,
    dot: Annotated[bool, typer.Option("--dot", help="A picture, for Graphviz.")] = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="A picture, for Mermaid.")] = False,
) -> None:
    """List the deltas that a delta came from, how, and with what weight; or those that came from it."""
    if dot + mermaid + common.json > 1:
        raise InputError("--dot, --mermaid and --json are three answers: give one of them.")
    with common.registry() as registry:
        edges = registry.lineage(delta, descendants=descendants, depth=depth)
    if dot or mermaid:
        sys.stdout.write((lineage_graph.dot if dot else lineage_graph.mermaid)(edges, of=delta) + "\n")
    else:
        print_rows(common, edges, title=f"{'Descendants' if descendants else 'Lineage'} of {delta}")


@command(app)
def similar(
    common: CommonOptions,
    task: Annotated[str, typer.Argument(help="A learned task.")],
    rows: Annotated[
        bool, typer.Option("--rows", help="Also read the task's rows again, and measure them through each delta.")
    ] = False,
    backbone: BackboneName = None,
) -> None:
    """List the other tasks by how alike they are, by several measures."""
    if rows:
        with common.learner(backbone) as learner:
            from continual.learning.similar_tasks import compare_through_deltas
            from continual.transfer.similarity import SIGNATURE_MEASURES

            found, left_out = (
                compare_through_deltas(learner.registry, learner.backbone, task),
                ["backbone", *SIGNATURE_MEASURES],
            )
    else:
        with common.registry() as registry:
            from continual.learning.similar_tasks import similar_tasks

            found = similar_tasks(registry, task)
        left_out = [] if len({row["backbone"] for row in found}) > 1 else ["backbone"]
    print_rows(common, found, title=f"Tasks like {task}", left_out=left_out)


@command(app, name="verify")
def verify_registry(
    common: CommonOptions,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out what needs the backbone.")] = False,
    backbone: BackboneName = None,
) -> None:
    """Check every row, every blob, the backbones and the champions' answers; exit code 1 where something is wrong."""
    with common.registry() as registry, err.status("verifying"):
        from continual.learning.verify import verify_home

        found = verify_home(registry, quick=quick, backbone=backbone, device=common.device)
    for note in found.notes:
        print_message(note)
    if common.json or found.problems:
        print_rows(common, [{"problem": problem} for problem in found.problems], title="Problems")
    else:
        out.print("Every blob and every row is as it was registered.")
    if found.problems:
        raise typer.Exit(1)
