"""The command line: `continual demo | run | learn | predict | report | tasks | deltas | lineage | similar | …`.

Standard output holds the answer, one JSON document with `--json`; progress and messages go to standard error.
Exit codes: 0 done · 2 something that could be checked before anything was learned · 1 a task failed while running.
"""

import io
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler

from continual.errors import ContinualError, InputError
from continual.options import Common, command, err
from continual.settings import DEFAULT_HOME
from registry import Registry, upgrade, verify
from tasks import Stream, read_stream, read_task, write_demo

app = typer.Typer(
    help="Continual multi-task learning: one frozen transformer, one small delta per task, a registry that remembers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
db = typer.Typer(help="The registry's database.", no_args_is_help=True)
app.add_typer(db, name="db")

out = Console()


StreamFile = Annotated[Path, typer.Argument(help="A stream file.")]
BackboneName = Annotated[str | None, typer.Option("--backbone", help="A name (minilm), a hub id or a folder.")]
TaskName = Annotated[str | None, typer.Option("--task", help="The name of a task.")]


def main() -> None:
    """Run the command line; every known error becomes one message and its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever the locale; half a surrogate pair is its JSON escape
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    handler = RichHandler(console=err, show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    try:
        app()
    except ContinualError as error:
        err.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)  # a message is searched and pasted whole
        sys.exit(error.exit_code)


@command(app)
def demo(common: Common) -> None:
    """Learn the docstrings of installed packages, one task per package, and show what came of it."""
    with err.status("reading the docstrings of installed packages"):
        stream = read_stream(write_demo(common.home / "demo"))
    option = "" if common.home == DEFAULT_HOME else f" --home {common.home}"
    _learn_stream(common, stream, None)
    err.print(
        "\nGo on with:\n"
        f'  echo "Draw samples from a normal distribution." | continual predict{option}\n'
        f"  continual report demo{option}\n"
        f"  continual ui{option}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


@command(app)
def run(
    common: Common,
    stream: StreamFile,
    backbone: BackboneName = None,
    check: Annotated[bool, typer.Option("--check", help="Check all tasks and estimate; learn nothing.")] = False,
) -> None:
    """Learn the tasks of a stream that are not learned yet."""
    known = read_stream(stream)
    if check:
        _check_stream(common, known, backbone)
    else:
        _learn_stream(common, known, backbone)


@command(app)
def learn(
    common: Common,
    task: Annotated[Path, typer.Argument(help="A task file.")],
    backbone: BackboneName = None,
) -> None:
    """Learn one task, or learn it again as a new version."""
    alone = read_task(task)
    name = alone.tasks[0].name
    with common.learner(backbone or alone.backbone) as learner:
        from continual.progress import progress

        with progress(err, [name]) as watcher:
            delta = learner.learn(alone, watcher=watcher)
        _print(common, [row for row in learner.registry.deltas(name) if row["delta"] == delta], title="Learned")


@command(app)
def predict(
    common: Common,
    file: Annotated[str, typer.Argument(help="Lines of text or JSON; - is standard input.")] = "-",
    task: TaskName = None,
    backbone: BackboneName = None,
) -> None:
    """Answer lines `{"text": …}`, or plain ones, with JSON lines in the same order."""
    from continual.lines import read_lines

    texts = read_lines(file)
    with common.learner(backbone) as learner:
        for prediction in learner.predict(texts, task):
            sys.stdout.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")


@command(app)
def report(
    common: Common,
    stream: Annotated[str | None, typer.Argument(help="The name of a stream; without it, the last one begun.")] = None,
) -> None:
    """Score matrices and measures of a stream, with the task known and with the task chosen by the router."""
    with common.registry() as registry:
        _report(common, registry, stream or _last_stream(registry))


@command(app)
def audit(common: Common, stream: StreamFile, backbone: BackboneName = None) -> None:
    """Answer all test rows of a stream again; exit code 1 where an answer is not, to the bit, what it was."""
    known = read_stream(stream)
    with common.learner(backbone or known.backbone) as learner:
        from continual.audit import audit_stream

        rows = audit_stream(learner.backbone, learner.registry, known)
    _print(common, [asdict(row) for row in rows], title="Audit")
    if not all(row.identical for row in rows):
        raise typer.Exit(1)


@command(app)
def tasks(common: Common) -> None:
    """List the tasks that are registered."""
    with common.registry() as registry:
        _print(common, registry.tasks(), title="Tasks")


@command(app)
def deltas(common: Common, task: TaskName = None) -> None:
    """List the deltas that are registered, a row for each version."""
    with common.registry() as registry:
        _print(common, registry.deltas(task), title="Deltas")


@command(app)
def lineage(common: Common, delta: Annotated[str, typer.Argument(help="A delta, such as sst2@1.")]) -> None:
    """List the deltas that a delta came from, how, and with what weight."""
    with common.registry() as registry:
        _print(common, registry.lineage(delta), title=f"Lineage of {delta}")


@command(app)
def similar(common: Common, task: Annotated[str, typer.Argument(help="A learned task.")]) -> None:
    """List the other tasks by how alike they are, from their signatures."""
    with common.registry() as registry:
        from continual.neighbours import similar_tasks

        _print(common, similar_tasks(registry, task), title=f"Tasks like {task}")


@command(app, name="verify")
def verify_registry(common: Common) -> None:
    """Check the digest of every blob and the references of every row; exit code 1 where something is wrong."""
    with common.registry() as registry:
        problems = verify(registry)
    if common.json or problems:
        _print(common, [{"problem": problem} for problem in problems], title="Problems")
    else:
        out.print("Every blob and every row is as it was registered.")
    if problems:
        raise typer.Exit(1)


@command(app)
def export(
    common: Common,
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
    _print(common, [{"delta": delta, "format": form, "folder": str(folder), "files": list(files)}], title="Exported")


@command(app, name="import")
def import_folder(
    common: Common,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that PEFT or `export` wrote.")],
    task: Annotated[str, typer.Option("--task", help="The task whose next version it becomes.")],
    rows: Annotated[Path | None, typer.Option("--rows", help="The task's file: score it on these rows.")] = None,
    backbone: BackboneName = None,
) -> None:
    """Register what PEFT saved as a new version of a task's delta; without rows it has no score."""
    with common.learner(backbone) as learner:
        name = learner.adopt(folder, task, rows=read_task(rows) if rows else None)
        stored = learner.registry.delta(name)
        _print(common, [row for row in learner.registry.deltas(task) if row["delta"] == name], title="Imported")
    reason = f", a {stored.status}: {stored.reason}" if stored.reason else ", and serves"
    err.print(f"{name} is registered{reason}", markup=False, highlight=False, soft_wrap=True)


@command(app)
def ui(
    common: Common,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5000,
) -> None:
    """Serve MLflow's pages on what was learned, after sending MLflow what it missed."""
    from continual.tracking import project, serve_ui

    with common.registry() as registry:
        project(registry, common.places)
    raise typer.Exit(serve_ui(common.places, host=host, port=port))


@command(db, name="upgrade")
def db_upgrade(common: Common) -> None:
    """Bring the registry's tables up to this version of the code."""
    revision = upgrade(common.places.registry)
    _print(common, [{"revision": revision}], title="Registry")


def _learn_stream(common: Common, stream: Stream, backbone: str | None) -> None:
    with common.learner(backbone or stream.backbone) as learner:
        from continual.progress import progress

        with progress(err, [task.name for task in stream.tasks]) as watcher:
            failed = learner.run(stream, watcher=watcher)
        _report(common, learner.registry, stream.name, failed=[{"task": t, "error": e} for t, e in failed.items()])
    for name, error in failed.items():
        err.print(f"task {name} failed: {error}", style="red", markup=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _check_stream(common: Common, stream: Stream, backbone: str | None) -> None:
    with common.learner(backbone or stream.backbone) as learner:
        from continual.estimate import estimate_stream

        rows = [asdict(row) for row in estimate_stream(learner.backbone, learner.registry, stream)]
    for row in rows:
        for note in row["notes"]:
            err.print(f"{row['task']}: {note}", markup=False, highlight=False, soft_wrap=True)
    _print(common, rows, title="Every task can be learned; what it would take")


def _report(common: Common, registry: Registry, stream: str, **more: Any) -> None:
    from continual.report import report as document_of
    from continual.show import show_report

    document = document_of(registry, stream) | more
    if common.json:
        _write(document)
    else:
        show_report(out, document)


def _print(common: Common, rows: list[dict[str, Any]], *, title: str) -> None:
    from continual.show import listing

    if common.json:
        _write(rows)
    else:
        out.print(title if rows else f"{title}: none", style="bold", markup=False)
        if rows:
            out.print(listing(rows))


def _write(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _last_stream(registry: Registry) -> str:
    streams = registry.streams()
    if not streams:
        raise InputError("no stream has been run here yet; run one (`continual run STREAM.yaml`), or give its --home")
    return streams[-1].name
