"""The command that answers texts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from continual.cli.commands import app, command
from continual.cli.options import AbstentionRate, BackboneName, BackboneOptions, RouterName, TaskName, err
from continual.errors import DeltaError
from continual.settings import FALSE_ABSTENTION_RATE, MIN_TASK_PROBABILITY
from tasks.errors import InputError

BATCH_SIZE = 256  # inputs


@dataclass(frozen=True)
class LinesOptions(BackboneOptions):
    """The options of a command that prints JSON lines, with or without `--json`."""

    json: Annotated[bool, typer.Option("--json", help="Changes nothing: answers are JSON lines in any case.")] = False


@command(
    app,
    examples=[
        'echo "the parcel was crushed" | continual predict',
        "continual predict tickets.csv --text-column message --output answers.csv",
        "continual predict --task billing < texts.txt",
        "continual predict --among billing,returns < texts.txt",
    ],
    remaining="answers that were printed are complete, and a file of --output is as it was",
)
def predict(
    common: LinesOptions,
    file: Annotated[str, typer.Argument(help="A file of lines, or .csv, .tsv, .parquet; - is standard input.")] = "-",
    task: TaskName = None,
    among: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Tasks among which the router chooses, separated by commas.")
    ] = None,
    text_column: Annotated[
        list[str] | None,
        typer.Option("--text-column", help="The column of the text; give it twice for pairs. By default `text`."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write to this file: .jsonl, .csv, .tsv or .parquet."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Inputs answered at once.")] = BATCH_SIZE,
    every: Annotated[
        bool, typer.Option("--all", help="List every task of at least the probability --at-least, with its answer.")
    ] = False,
    at_least: Annotated[float, typer.Option(min=0, max=1, help="Least probability for --all.")] = MIN_TASK_PROBABILITY,
    abstain: AbstentionRate = FALSE_ABSTENTION_RATE,
    router: RouterName = "auto",
    backbone: BackboneName = None,
) -> None:
    """Answer texts by the named task, or by the router's choice; one JSON line per input, in their order.

    An input is a line of text or a JSON object: `{"text": "…"}`, or `{"text": ["…", "…"]}` for a pair, with the name of
    its "task" if it is known. Further columns, such as an "id", are handed back. Lines of standard input are answered
    as they come.
    """
    from continual.cli.input_files import open_batches
    from continual.cli.output_files import check_output, open_output
    from continual.inference.input_rows import predict_rows
    from continual.inference.predictor import Predictor

    check_output(output)
    names = None if among is None else list(dict.fromkeys(name.strip() for name in among.split(",")))
    if names is not None and task is not None:
        raise InputError(
            f"--among {among!r} is what the router chooses among, and --task {task!r} leaves it no choice; give one"
        )
    batches, total = open_batches(file, batch_size, text_columns=text_column or ())
    errors, count = [], 0
    with common.learner(backbone) as learner, open_output(output) as write, _progress(total) as advance:
        predictor = Predictor(learner.backbone, learner.registry, router=router, false_abstentions=abstain)
        for batch in batches:
            predictions = predict_rows(predictor, batch, task=task, among=names, at_least=at_least if every else None)
            write(predictions)
            errors += [prediction.error for prediction in predictions if prediction.error]
            count += len(batch)
            advance(len(batch))
    if errors:
        raise DeltaError(f"{len(errors)} of {count} inputs have no answer; the first: {errors[0]}")


@contextmanager
def _progress(total: int | None) -> Iterator[Callable[[int], object]]:
    """Show a bar on a terminal where the number of inputs is known; yield what advances it."""
    from rich.progress import MofNCompleteColumn

    from continual.cli.progress import flexible_bar, timed_progress

    with timed_progress(err, flexible_bar(), MofNCompleteColumn(), transient=True) as bar:
        inputs = bar.add_task("", total=total, visible=total is not None and total > BATCH_SIZE)
        yield lambda count: bar.advance(inputs, count)
