"""`continual query`: what people ask of what was learned."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from continual.cli.options import AfterName, AfterRow, CommonOptions, Limit, TaskName, app, command, print_rows
from tasks.errors import InputError

query = typer.Typer(help="Questions about what was learned; see docs/registry.md.", no_args_is_help=True)
app.add_typer(query, name="query")

Metric = Annotated[str | None, typer.Option("--metric", help="A metric, such as accuracy.")]
Split = Annotated[str, typer.Option("--split", help="train, validation or test: where the scores were measured.")]
Task = Annotated[str, typer.Argument(help="A learned task.")]


@command(query)
def best(
    common: CommonOptions,
    task: TaskName = None,
    metric: Metric = None,
    split: Split = "test",
    limit: Limit = None,
    after: AfterRow = None,
) -> None:
    """The best delta of each task by each metric, whether or not it serves."""
    with common.registry() as registry:
        rows = registry.best(task=task, metric=metric, split=split, limit=limit, after=after)
    print_rows(common, rows, title="Best deltas")


@command(query)
def changes(
    common: CommonOptions,
    since: Annotated[str | None, typer.Option(help="A day or a time as in 2026-01-31T12:00; UTC unless said.")] = None,
    task: TaskName = None,
    limit: Limit = None,
    after: AfterRow = None,
) -> None:
    """What was learned, promoted, archived or purged, oldest first."""
    moment = None if since is None else _moment(since)
    with common.registry() as registry:
        print_rows(common, registry.changes(since=moment, task=task, limit=limit, after=after), title="Changes")


@command(query)
def history(
    common: CommonOptions,
    task: Task,
    metric: Metric = None,
    split: Split = "test",
    limit: Limit = None,
    after: AfterRow = None,
) -> None:
    """How the scores of a task went, over its versions and while a stream went on."""
    with common.registry() as registry:
        rows = registry.history(task, metric=metric, split=split, limit=limit, after=after)
    print_rows(common, rows, title=f"Scores of {task}")


@command(query)
def siblings(common: CommonOptions, task: Task, limit: Limit = None, after: AfterRow = None) -> None:
    """Deltas of other tasks that came from the same parents."""
    with common.registry() as registry:
        print_rows(common, registry.siblings(task, limit=limit, after=after), title=f"Siblings of {task}")


@command(query)
def cost(
    common: CommonOptions,
    stream: Annotated[str | None, typer.Argument(help="A stream; without it, all.")] = None,
    limit: Limit = None,
    after: AfterName = None,
) -> None:
    """What streams took: seconds of learning, examples, bytes, parameters, retries."""
    with common.registry() as registry:
        print_rows(common, registry.cost(stream, limit=limit, after=after), title="Costs")


@command(query)
def dependents(
    common: CommonOptions,
    backbone: Annotated[str | None, typer.Option("--backbone", help="Its fingerprint or name.")] = None,
    task: TaskName = None,
    data: Annotated[str | None, typer.Option("--data", help="The fingerprint of a split of a task.")] = None,
    limit: Limit = None,
    after: AfterName = None,
) -> None:
    """The deltas that were learned on a backbone, from a task or from data, and all that came from them."""
    with common.registry() as registry:
        rows = registry.dependents(backbone=backbone, task=task, data=data, limit=limit, after=after)
    print_rows(common, rows, title="Dependents")


def _moment(said: str) -> datetime:
    try:
        moment = datetime.fromisoformat(said)
    except ValueError as error:
        raise InputError(
            f"--since {said!r} is no time: {error}. Write 2026-01-31 or 2026-01-31T12:00+00:00."
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
