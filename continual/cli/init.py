"""The command that drafts a stream file."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from continual.cli.commands import app, command
from continual.cli.options import BackboneName, CommonOptions, err, out, print_json, print_message
from continual.cli.table_layout import TextTable, print_table
from tasks.errors import InputError

if TYPE_CHECKING:
    from tasks.drafting import TaskDraft

STANDARD_OUTPUT = Path("-")
DEFAULT_BACKBONE = "minilm"
COLUMNS = ("task", "kind", "text", "target", "labels", "rows", "metric")


@command(
    app,
    examples=[
        "continual init billing.csv delivery.csv",
        "continual init mood/ --output mood.yaml",
        "continual init tickets.parquet --text message --label topic",
    ],
)
def init(
    common: CommonOptions,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Files or folders of .csv, .tsv, .jsonl, .json or .parquet.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The stream file to write; - is standard output.")
    ] = Path("stream.yaml"),
    text: Annotated[
        list[str] | None,
        typer.Option("--text", metavar="COLUMN", help="The column of the text; give it twice for pairs."),
    ] = None,
    label: Annotated[
        str | None, typer.Option("--label", metavar="COLUMN", help="The column of labels, numbers, answers or targets.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file of --output.")] = False,
    backbone: BackboneName = None,
) -> None:
    """Write a commented stream file after a look at data files: one task for each, with kind and columns guessed.

    Files called train, validation and test, as in mood/train.csv or mood.train.csv, are the splits of one task.
    """
    from continual.cli.tables import format_value
    from tasks.drafting import draft_stream, to_yaml

    printed = output == STANDARD_OUTPUT
    if printed and common.json:
        raise InputError("--output - prints the stream file and --json a description of it: give one of them")
    if not printed:
        _check_output(output, force=force)
    with err.status("reading the files"):
        folder = Path() if printed else output.parent
        draft = draft_stream(files, folder=folder, text=text or (), label=label, backbone=backbone or DEFAULT_BACKBONE)
    if printed:
        sys.stdout.write(to_yaml(draft))
        return
    _write(output, to_yaml(draft))
    rows = list(map(_row, draft.tasks))
    if common.json:
        print_json(rows)
    else:
        cells = [[format_value(row[column]) for column in COLUMNS] for row in rows]
        print_table(out, TextTable(COLUMNS, cells, [column == "labels" for column in COLUMNS]))
    for task in draft.tasks:
        for note in (*task.notes, *(f"warning: {warning}" for warning in task.data.warnings)):
            print_message(f"{task.spec.name}: {note}")
    name = shlex.quote(str(output))
    print_message(
        f"\n{name} is written. Every value is a guess, with its reason above it. Go on with:\n"
        f"  continual run {name} --check\n  continual run {name}"
    )


def _check_output(file: Path, *, force: bool) -> None:
    if file.exists() and not force:
        raise InputError(f"{file} exists; give another --output, or --force to replace it")
    if file.is_dir() or not file.parent.is_dir():
        raise InputError(f"--output {file}: there is no folder {file.parent}, or it is one itself; give another file")


def _write(file: Path, document: str) -> None:
    try:
        file.write_text(document, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output {file} cannot be written: {error.strerror or error}; give another file") from error


def _row(task: "TaskDraft") -> dict[str, Any]:
    from tasks import KIND_SCHEMAS

    spec, data = task.spec, task.data
    return {
        "task": spec.name,
        "kind": spec.kind,
        "text": [spec.text] if isinstance(spec.text, str) else list(spec.text),
        "target": spec.messages or getattr(spec, KIND_SCHEMAS[spec.kind].target_column),
        "labels": len(data.labels) or None,
        "rows": {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)},
        "metric": spec.metric,
        "reasons": dict(task.reasons),
    }
