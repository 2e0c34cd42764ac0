"""Commands on tasks that keep arriving."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from continual.callbacks import RunCallbacks
from continual.cli.commands import app, command, group
from continual.cli.options import (
    AfterRow,
    BackboneName,
    BackboneOptions,
    CommonOptions,
    Limit,
    print_message,
    print_rows,
)

REGISTRY = "registry"
HIDDEN_COLUMNS = ("holder", "backbone", "submitted_at")

Number = Annotated[int, typer.Argument(min=1, help="The number of an arrival.")]


@command(
    app,
    examples=["continual watch inbox --backbone minilm", "continual watch registry --idle 60"],
    remaining="arrivals that are not learned wait",
)
def watch(
    common: BackboneOptions,
    where: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|registry", help="A folder whose task files are submitted, or `registry` for none."
        ),
    ],
    idle: Annotated[
        float | None, typer.Option(min=0, help="End after so many seconds without an arrival to learn.")
    ] = None,
    backbone: BackboneName = None,
) -> None:
    """Learn submitted tasks as they arrive, until Ctrl-C or SIGTERM."""
    folder = None if where == REGISTRY else Path(where)
    with common.learner(backbone, create=True) as learner, _recorded_signals() as signals:
        errors = learner.watch(folder, idle=idle, callbacks=_message_callbacks())
    print_rows(common, [{"arrival": number, "error": error} for number, error in errors.items()], title="Learned")
    if signal.SIGINT in signals:
        raise KeyboardInterrupt
    if any(errors.values()):
        raise typer.Exit(1)


@group("arrivals", examples=["continual arrivals --state failed"])
def arrivals(
    common: CommonOptions,
    state: Annotated[
        str | None, typer.Option(help="Only those that are waiting, held, learned, failed or cancelled.")
    ] = None,
    limit: Limit = None,
    after: AfterRow = None,
) -> None:
    """List submitted tasks and their states."""
    with common.registry() as registry:
        rows = registry.arrivals(state=state, limit=limit, after=after)
    print_rows(common, rows, title="Arrivals", hidden=HIDDEN_COLUMNS)


@command(arrivals, examples=["continual arrivals add billing.yaml --priority 5"])
def add(
    common: CommonOptions,
    task: Annotated[Path, typer.Argument(help="A task file.")],
    priority: Annotated[int, typer.Option(help="Higher priorities are learned first.")] = 0,
) -> None:
    """Submit a task; a task that was learned before is learned again."""
    from tasks import read_task

    stream = read_task(task)
    with common.registry(create=True) as registry:
        _print_arrival(common, registry.submit(stream, priority=priority))


@command(arrivals, examples=["continual arrivals cancel 3"])
def cancel(common: CommonOptions, number: Number) -> None:
    """Cancel an arrival; a process that is learning it stops soon."""
    with common.registry() as registry:
        registry.cancel_arrival(number)
    _print_arrival(common, number)


@command(arrivals, examples=["continual arrivals retry 3"])
def retry(common: CommonOptions, number: Number) -> None:
    """Put an arrival that failed or was cancelled back in the queue."""
    with common.registry() as registry:
        registry.retry_arrival(number)
    _print_arrival(common, number)


def _print_arrival(common: CommonOptions, number: int) -> None:
    with common.registry() as registry:
        print_rows(common, registry.arrivals(limit=1, after=number - 1), title="Arrival", hidden=HIDDEN_COLUMNS)


def _message_callbacks() -> RunCallbacks:
    return RunCallbacks(
        on_note=lambda task, note: print_message(f"{task}: {note}"),
        on_start=lambda task: print_message(f"{task}: is being learned"),
        on_learned=lambda task, delta: print_message(f"{task}: {delta} is learned", style="green"),
        on_failed=lambda task, error: print_message(f"{task}: failed: {error}", style="red"),
    )


@contextmanager
def _recorded_signals() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt on SIGINT and SIGTERM until the block ends; yield the list of those that came."""
    received: list[int] = []

    def interrupt(number: int, _: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
