"""Commands that learn a stream, or one task."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Any

import typer

from continual.cli.commands import LEARNED_IS_KEPT, app, command
from continual.cli.options import BackboneName, BackboneOptions, err, print_message, print_rows

if TYPE_CHECKING:
    from registry import Registry
    from tasks import Stream

StreamFile = Annotated[Path, typer.Argument(help="A stream file.")]


@command(
    app,
    examples=[
        "continual run stream.yaml --check",
        "continual run stream.yaml",
        "continual run stream.yaml --engine ray --workers 4",
    ],
    remaining=LEARNED_IS_KEPT,
)
def run(
    common: BackboneOptions,
    stream: StreamFile,
    backbone: BackboneName = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only check all tasks and estimate their costs; learn nothing.")
    ] = False,
    retries: Annotated[int, typer.Option(min=0, help="How often a failed task is tried again, after the others.")] = 1,
    engine: Annotated[
        str, typer.Option(help="Where tasks are learned: local (this process) or ray (a cluster).")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="ray: address of the cluster; by default a new one on this machine.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="ray: number of workers; by default as many as fit.")
    ] = None,
    worker_cpus: Annotated[int | None, typer.Option(min=1, help="ray: cores, and threads, of each worker.")] = None,
    worker_gpus: Annotated[
        float | None, typer.Option(min=0, help="ray: GPUs of each worker; a fraction shares one.")
    ] = None,
    worker_memory: Annotated[
        float | None, typer.Option(min=0, help="ray: GiB of memory of each worker; by default an estimate.")
    ] = None,
) -> None:
    """Learn the tasks of a stream that are not learned yet, and report."""
    from continual.streams.engine import resolve_engine
    from tasks import read_stream

    loaded = read_stream(stream)
    resolved = resolve_engine(
        engine,
        address=address,
        workers=workers,
        worker_cpus=worker_cpus,
        worker_gpus=worker_gpus,
        worker_memory=worker_memory,
    )
    if check:
        _check_stream(common, loaded, backbone)
    else:
        from continual.cli.report import print_stream_report

        def show(registry: "Registry", failed: list[dict[str, str]]) -> None:
            print_stream_report(common, registry, loaded.name, failed=failed)

        learn_stream(common, loaded, backbone, show=show, retries=retries, engine=resolved)


@command(
    app,
    examples=["continual learn billing.yaml --backbone minilm", "continual learn stream.yaml --task billing"],
    remaining="nothing of this version is kept, and earlier ones serve as before",
)
def learn(
    common: BackboneOptions,
    file: Annotated[Path, typer.Argument(help="A task file, or a stream file with --task.")],
    task: Annotated[str | None, typer.Option("--task", help="The task of a stream file.")] = None,
    backbone: BackboneName = None,
) -> None:
    """Learn one task; if it was learned before, as a new version. A stream keeps what it has learned."""
    from tasks import read_task

    stream = read_task(file, task)
    name = stream.tasks[0].name
    with common.learner(backbone or stream.backbone, create=True) as learner:
        from continual.cli.progress import progress_bars

        with progress_bars(err, [name]) as callbacks:
            delta = learner.learn(stream, callbacks=callbacks)
        print_rows(common, [row for row in learner.registry.deltas(name) if row["delta"] == delta], title="Learned")


def learn_stream(
    common: BackboneOptions,
    stream: "Stream",
    backbone: str | None,
    *,
    show: Callable[["Registry", list[dict[str, str]]], None],
    **options: Any,
) -> None:
    """Learn the tasks of a stream that are not learned yet; exit with 1 where some failed.

    Args:
        common: The common options.
        stream: The stream.
        backbone: The name of the backbone; None takes the stream's.
        show: Prints what was learned, from the registry and the errors of failed tasks.
        options: Further arguments of `Learner.run`.
    """
    with common.learner(backbone or stream.backbone, create=True) as learner:
        from continual.cli.progress import progress_bars

        with progress_bars(err, [task.name for task in stream.tasks]) as callbacks:
            failed = learner.run(stream, callbacks=callbacks, **options)
        show(learner.registry, [{"task": task, "error": error} for task, error in failed.items()])
    for name, error in failed.items():
        print_message(f"task {name} failed: {error}", style="red")
    if failed:
        raise typer.Exit(1)


def _check_stream(common: BackboneOptions, stream: "Stream", backbone: str | None) -> None:
    with common.learner(backbone or stream.backbone, create=True) as learner:
        from continual.streams.estimate import estimate_stream

        rows = [asdict(row) for row in estimate_stream(learner.backbone, learner.registry, stream)]
    for row in rows:
        for note in row["notes"]:
            print_message(f"{row['task']}: {note}")
        for warning in row["warnings"]:
            print_message(f"{row['task']}: warning: {warning}", style="yellow")
        for part, text in row["example"].items():
            print_message(f"{row['task']}: {part} of one row, as the model reads it:\n{indent(text, '  ')}")
    print_rows(common, rows, title="Every task can be learned; what it would take", hidden=["example"])
