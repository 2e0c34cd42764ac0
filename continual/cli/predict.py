"""The command that answers texts."""

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from continual.cli.options import (
    AbstentionRate,
    BackboneName,
    CommonOptions,
    RouterName,
    TaskName,
    app,
    command,
)
from continual.errors import DeltaError
from continual.settings import FALSE_ABSTENTION_RATE, MIN_TASK_PROBABILITY


@command(app)
def predict(
    common: CommonOptions,
    file: Annotated[str, typer.Argument(help="A file of plain or JSON lines; - is standard input.")] = "-",
    task: TaskName = None,
    every: Annotated[
        bool, typer.Option("--all", help="List every task of at least the probability --at-least, with its answer.")
    ] = False,
    at_least: Annotated[float, typer.Option(min=0, max=1, help="Least probability for --all.")] = MIN_TASK_PROBABILITY,
    abstain: AbstentionRate = FALSE_ABSTENTION_RATE,
    router: RouterName = "auto",
    backbone: BackboneName = None,
) -> None:
    """Answer texts by the named task, or by the router's choice; JSON lines in the order of the inputs.

    Input lines are plain text, `{"text": "…"}`, or a pair `{"text": ["…", "…"]}`.
    """
    from continual.cli.input_lines import read_inputs

    texts = read_inputs(file)
    with common.learner(backbone) as learner:
        predictions = learner.predict(
            texts, task, router=router, false_abstentions=abstain, at_least=at_least if every else None
        )
        for prediction in predictions:
            sys.stdout.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")
    if errors := [prediction.error for prediction in predictions if prediction.error]:
        raise DeltaError(f"{len(errors)} of {len(predictions)} inputs have no answer; the first: {errors[0]}")
