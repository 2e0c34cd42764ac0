"""`continual query`: common queries on the registry."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from continual.cli.commands import app, command
from continual.cli.options import AfterName, AfterRow, CommonOptions, Limit, TaskName, print_rows
from tasks.errors import InputError

query = typer.Typer(
    help="Query scores, changes, costs and provenance; see docs/reference/registry-views.md.", no_args_is_help=True
)
app.add_typer(query, name="query")

Metric = Annotated[str | None, typer.Option("--metric", help="Only scores by this metric, such as accuracy.")]
Split = Annotated[
    str, typer.Option("--split", help="The split on which scores were measured: train, validation or test.")
]
Task = Annotated[str, typer.Argument(help="A learned task.")]


@command(query, examples=["continual query best --metric accuracy"])
def best(
    common: CommonOptions,
    task: TaskName = None,
    metric: Metric = None,
    split: Split = "test",
    limit: Limit = None,
    after: AfterRow = None,
) -> None:
    """List the best delta of each task by each metric, champion or not."""
    with common.registry() as registry:
        rows = registry.best(task=task, metric=metric, split=split, limit=limit, after=after)
    print_rows(common, rows, title="Best deltas")


@command(query, examples=["continual query changes --since 2026-01-31"])
def changes(
    common: CommonOptions,
    since: Annotated[
        str | None, typer.Option(help="A day or a time, such as 2026-01-31T12:00; UTC unless it has an offset.")
    ] = None,
    task: TaskName = None,
    limit: Limit = None,
    after: AfterRow = None,
) -> None:
    """List when deltas were learned, promoted, archived or purged, oldest first."""
    start = None if since is None else _parse_time(since)
    with common.registry() as registry:
        print_rows(common, registry.changes(since=start, task=task, limit=limit, after=after), title="Changes")


@command(query, examples=["continual query history billing --split validation"])
def history(
    common: CommonOptions,
    task: Task,
    metric: Metric = None,
    split: Split = "test",
    limit: Limit = None,
    after: AfterRow = None,
) -> None:
    """List the scores of a task, over its versions and over the positions of streams."""
    with common.registry() as registry:
        rows = registry.history(task, metric=metric, split=split, limit=limit, after=after)
    print_rows(common, rows, title=f"Scores of {task}")


@command(query, examples=["continual query siblings billing"])
def siblings(common: CommonOptions, task: Task, limit: Limit = None, after: AfterRow = None) -> None:
    """List the deltas of other tasks that came from the same parents."""
    with common.registry() as registry:
        print_rows(common, registry.siblings(task, limit=limit, after=after), title=f"Siblings of {task}")


@command(query, examples=["continual query cost helpdesk"])
def cost(
    common: CommonOptions,
    stream: Annotated[str | None, typer.Argument(help="A stream; by default all.")] = None,
    limit: Limit = None,
    after: AfterName = None,
) -> None:
    """List the costs of streams: seconds of training, examples, bytes, parameters, retries."""
    with common.registry() as registry:
        print_rows(common, registry.cost(stream, limit=limit, after=after), title="Costs")


@command(query, examples=["continual query dependents --backbone minilm"])
def dependents(
    common: CommonOptions,
    backbone: Annotated[str | None, typer.Option("--backbone", help="The backbone's fingerprint or name.")] = None,
    task: TaskName = None,
    data: Annotated[str | None, typer.Option("--data", help="The fingerprint of a split of a task's data.")] = None,
    limit: Limit = None,
    after: AfterName = None,
) -> None:
    """List the deltas learned on a backbone, from a task or from data, and all their descendants."""
    with common.registry() as registry:
        rows = registry.dependents(backbone=backbone, task=task, data=data, limit=limit, after=after)
    print_rows(common, rows, title="Dependents")


def _parse_time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(
            f"--since {text!r} is no time: {error}. Write 2026-01-31 or 2026-01-31T12:00+00:00."
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
