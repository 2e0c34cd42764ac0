"""Commands that list and check the registry's contents."""

import sys
from typing import Annotated

import typer

from continual.cli import lineage_graph
from continual.cli.commands import app, command, group
from continual.cli.options import (
    AfterName,
    BackboneName,
    BackboneOptions,
    CommonOptions,
    Device,
    Limit,
    TaskName,
    err,
    out,
    print_json,
    print_message,
    print_rows,
)
from registry import DatabaseDamaged, RegistryMissing
from tasks.errors import InputError


@group("tasks", examples=["continual tasks", "continual tasks --limit 50 --after billing --json"])
def tasks(common: CommonOptions, limit: Limit = None, after: AfterName = None) -> None:
    """List the registered tasks."""
    with common.registry() as registry:
        print_rows(common, registry.tasks(limit=limit, after=after), title="Tasks", hidden=("created_at",))


@command(tasks, examples=["continual tasks show billing"])
def show(common: CommonOptions, task: Annotated[str, typer.Argument(help="A learned task.")]) -> None:
    """Show one task in full: kind, labels, rows, source, and its versions with scores, warnings and parents."""
    with common.registry() as registry:
        from continual.reports.task import task_report

        document = task_report(registry, task)
    if common.json:
        print_json(document)
    else:
        from continual.cli.task_tables import print_task

        print_task(out, document)


@group("deltas", examples=["continual deltas --task billing"])
def deltas(common: CommonOptions, task: TaskName = None, limit: Limit = None, after: AfterName = None) -> None:
    """List the registered deltas, one row per version."""
    with common.registry() as registry:
        print_rows(common, registry.deltas(task, limit=limit, after=after), title="Deltas")


@command(app, examples=["continual lineage billing@2", "continual lineage billing@1 --descendants --mermaid"])
def lineage(
    common: CommonOptions,
    delta: Annotated[str, typer.Argument(help="A delta, such as sst2@1.")],
    descendants: Annotated[
        bool, typer.Option("--descendants", help="List the deltas that came from this one instead.")
    ] = False,
    depth: Annotated[int | None, typer.Option(min=1, help="Maximum number of steps from the delta.")] = None,
    dot: Annotated[bool, typer.Option("--dot", help="Print a graph for Graphviz.")] = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a graph for Mermaid.")] = False,
) -> None:
    """List the deltas that a delta came from, with the kind and weight of each step."""
    if dot + mermaid + common.json > 1:
        raise InputError("--dot, --mermaid and --json are three answers: give one of them.")
    with common.registry() as registry:
        edges = registry.lineage(delta, descendants=descendants, depth=depth)
    if dot or mermaid:
        sys.stdout.write((lineage_graph.dot if dot else lineage_graph.mermaid)(edges, of=delta) + "\n")
    else:
        print_rows(common, edges, title=f"{'Descendants' if descendants else 'Lineage'} of {delta}")


@command(app, examples=["continual similar billing", "continual similar billing --rows"])
def similar(
    common: BackboneOptions,
    task: Annotated[str, typer.Argument(help="A learned task.")],
    rows: Annotated[
        bool, typer.Option("--rows", help="Also read the task's rows and score them through each task's delta.")
    ] = False,
    backbone: BackboneName = None,
) -> None:
    """List the other tasks by their similarity to a task, by several measures."""
    if rows:
        with common.learner(backbone) as learner:
            from continual.learning.similar_tasks import compare_through_deltas
            from continual.transfer.similarity import SIGNATURE_MEASURES

            neighbours = compare_through_deltas(learner.registry, learner.backbone, task)
            hidden = ["backbone", *SIGNATURE_MEASURES]
    else:
        with common.registry() as registry:
            from continual.learning.similar_tasks import similar_tasks

            neighbours = similar_tasks(registry, task)
        hidden = [] if len({row["backbone"] for row in neighbours}) > 1 else ["backbone"]
    print_rows(common, neighbours, title=f"Tasks like {task}", hidden=hidden)


@command(app, name="verify", examples=["continual verify --quick", "continual verify --device cpu --json"])
def verify_registry(
    common: CommonOptions,
    quick: Annotated[bool, typer.Option("--quick", help="Skip checks that load the backbone.")] = False,
    device: Device = "auto",
    backbone: BackboneName = None,
) -> None:
    """Check every row, every blob, the backbones and the champions' predictions; exit code 1 on a problem."""
    from continual.learning.verify import VerificationReport, verify_home

    try:
        with common.registry() as registry, err.status("verifying"):
            result = verify_home(registry, quick=quick, backbone=backbone, device=device)
    except (DatabaseDamaged, RegistryMissing) as error:
        result = VerificationReport([str(error)], [])
    for note in result.notes:
        print_message(note)
    if common.json or result.problems:
        print_rows(common, [{"problem": problem} for problem in result.problems], title="Problems")
    else:
        out.print("Every blob and every row is as it was registered.")
    if result.problems:
        raise typer.Exit(1)
