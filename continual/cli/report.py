"""Commands that measure: the report of a stream, and its audit."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from continual.cli.commands import app, command
from continual.cli.options import (
    BackboneName,
    BackboneOptions,
    CommonOptions,
    Html,
    Limit,
    out,
    print_json,
    print_message,
    print_rows,
)
from tasks.errors import InputError

if TYPE_CHECKING:
    from registry import Registry


@command(app, examples=["continual report", "continual report helpdesk --per-class --html report.html"])
def report(
    common: CommonOptions,
    stream: Annotated[str | None, typer.Argument(help="The name of a stream; by default the one begun last.")] = None,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Also show the scores and confusions of each task's labels.")
    ] = False,
    html: Html = None,
) -> None:
    """Report a stream's score matrices and measures, with the task known and with the task routed."""
    with common.registry() as registry:
        print_stream_report(common, registry, stream or _last_stream(registry), html=html, per_class=per_class)


@command(app, examples=["continual audit stream.yaml"])
def audit(
    common: BackboneOptions,
    stream: Annotated[Path, typer.Argument(help="A stream file.")],
    backbone: BackboneName = None,
) -> None:
    """Predict all test rows of a stream again; exit code 1 if a prediction is not bit-identical."""
    from tasks import read_stream

    loaded = read_stream(stream)
    with common.learner(backbone or loaded.backbone) as learner:
        from continual.streams.audit import audit_stream

        rows = audit_stream(learner.backbone, learner.registry, loaded)
    print_rows(common, [asdict(row) for row in rows], title="Audit")
    if not all(row.identical for row in rows):
        raise typer.Exit(1)


@command(app, examples=["continual errors billing --limit 20"])
def errors(
    common: BackboneOptions,
    task: Annotated[str, typer.Argument(help="A learned task.")],
    limit: Limit = None,
    backbone: BackboneName = None,
) -> None:
    """List the test rows that a task's champion answers wrongly, the surest first; the rows are read again."""
    with common.learner(backbone) as learner:
        from continual.learning.wrong_answers import find_wrong_answers
        from tasks import text_as_json

        result = find_wrong_answers(learner.backbone, learner.registry, task)
    if result.change:
        print_message(f"warning: {result.change}", style="yellow")
    title = f"{len(result.wrong)} of {result.rows} test rows that {result.delta} answers wrongly"
    rows = [asdict(row) | {"text": text_as_json(row.text)} for row in result.wrong[:limit]]
    print_rows(common, rows, title=title)


def print_stream_report(
    common: CommonOptions,
    registry: "Registry",
    stream: str,
    *,
    html: Path | None = None,
    per_class: bool = False,
    **extra: Any,
) -> None:
    """Print a stream's report, as JSON or as tables, and write its page.

    Args:
        common: The common options.
        registry: The registry.
        stream: The stream's name.
        html: The file of the page, where one is wanted.
        per_class: Also print the scores and confusions of each task's labels, which the JSON has anyway.
        extra: Further fields of the document, such as `failed`.
    """
    from continual.cli.class_tables import print_classes
    from continual.cli.tables import print_report
    from continual.reports.report import stream_report

    document = stream_report(registry, stream) | extra
    if html:
        from continual.reports.html import stream_page, write_page

        write_page(html, stream_page(registry, document))
        print_message(f"{html} is written")
    if common.json:
        print_json(document)
    else:
        print_report(out, document)
        if per_class:
            for task in document["per_task"]:
                print_classes(out, task)


def _last_stream(registry: "Registry") -> str:
    stream = registry.last_stream()
    if stream is None:
        raise InputError("no stream has been run here yet; run one (`continual run STREAM.yaml`), or give its --home")
    return stream
