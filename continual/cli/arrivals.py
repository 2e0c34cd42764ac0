"""Commands on tasks that keep arriving."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from continual.callbacks import RunCallbacks
from continual.cli.options import (
    AfterRow,
    BackboneName,
    CommonOptions,
    Limit,
    app,
    command,
    group,
    print_message,
    print_rows,
)
from tasks import read_task

REGISTRY = "registry"
NOT_SHOWN = ("holder", "backbone", "submitted_at")

Number = Annotated[int, typer.Argument(min=1, help="The number of an arrival.")]


@command(app)
def watch(
    common: CommonOptions,
    where: Annotated[str, typer.Argument(metavar="FOLDER|registry", help="Task files dropped there arrive too.")],
    idle: Annotated[
        float | None, typer.Option(min=0, help="End when for so many seconds nothing has been left to learn.")
    ] = None,
    backbone: BackboneName = None,
) -> None:
    """Learn what arrives, until it is told to end (Ctrl-C, SIGTERM)."""
    folder = None if where == REGISTRY else Path(where)
    with common.learner(backbone) as learner, _told_to_end():
        ended = learner.watch(folder, idle=idle, callbacks=_told())
    print_rows(common, [{"arrival": number, "error": error} for number, error in ended.items()], title="Learned")
    if any(ended.values()):
        raise typer.Exit(1)


@group("arrivals")
def arrivals(
    common: CommonOptions,
    state: Annotated[str | None, typer.Option(help="waiting, held, learned, failed or cancelled.")] = None,
    limit: Limit = None,
    after: AfterRow = None,
) -> None:
    """List what was submitted, and what came of it."""
    with common.registry() as registry:
        rows = registry.arrivals(state=state, limit=limit, after=after)
    print_rows(common, rows, title="Arrivals", left_out=NOT_SHOWN)


@command(arrivals)
def add(
    common: CommonOptions,
    task: Annotated[Path, typer.Argument(help="A task file.")],
    priority: Annotated[int, typer.Option(help="Those of a higher one are learned before others.")] = 0,
) -> None:
    """Submit a task, again if it is known."""
    alone = read_task(task)
    with common.registry() as registry:
        _answer(common, registry.submit(alone, priority=priority))


@command(arrivals)
def cancel(common: CommonOptions, number: Number) -> None:
    """See to it that an arrival is not learned; who is learning it stops soon."""
    with common.registry() as registry:
        registry.cancel_arrival(number)
    _answer(common, number)


@command(arrivals)
def retry(common: CommonOptions, number: Number) -> None:
    """Let an arrival that failed or was cancelled wait again."""
    with common.registry() as registry:
        registry.retry_arrival(number)
    _answer(common, number)


def _answer(common: CommonOptions, number: int) -> None:
    with common.registry() as registry:
        print_rows(common, registry.arrivals(limit=1, after=number - 1), title="Arrival", left_out=NOT_SHOWN)


def _told() -> RunCallbacks:
    return RunCallbacks(
        on_note=lambda task, note: print_message(f"{task}: {note}"),
        on_start=lambda task: print_message(f"{task}: is being learned"),
        on_learned=lambda task, delta: print_message(f"{task}: {delta} is learned", style="green"),
        on_failed=lambda task, error: print_message(f"{task}: failed: {error}", style="red"),
    )


@contextmanager
def _told_to_end() -> Iterator[None]:
    """SIGTERM ends a watch as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
