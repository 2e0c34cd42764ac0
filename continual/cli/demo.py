"""The demo: tasks from installed packages, and one screen that says what was learned, gained and forgotten."""

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from continual.cli.commands import LEARNED_IS_KEPT, app, command
from continual.cli.options import BackboneOptions, err, out, print_json, print_message
from continual.cli.run import learn_stream
from continual.cli.table_layout import TextTable, print_table, print_text
from continual.settings import DEFAULT_HOME

if TYPE_CHECKING:
    from registry import Registry

PAGE = "demo.html"
INPUTS = {"minilm": "If the graph has no edges.", "smollm2": "def shortest_path_length(G, source, target)"}
COLUMNS = ("task", "classifier only", "learned", "from scratch", "started from", "at the end", "routed")
CAPTION = (
    "classifier only: on the frozen features, without a delta · from scratch: a delta that starts from no other · "
    "at the end: after the last task · routed: the router chose the task"
)


@command(app, examples=["continual demo", "continual demo --backbone smollm2"], remaining=LEARNED_IS_KEPT)
def demo(
    common: BackboneOptions,
    backbone: Annotated[
        Literal["minilm", "smollm2"],
        typer.Option(help="minilm tells what sentences describe; smollm2, a language model, also writes summaries."),
    ] = "minilm",
) -> None:
    """Learn from the docstrings of installed packages, one task per package."""
    from tasks import read_stream, write_demo_stream, write_writing_stream

    write_stream = write_writing_stream if backbone == "smollm2" else write_demo_stream
    with err.status("reading the docstrings of installed packages"):
        stream = read_stream(write_stream(common.home / "demo"))
    page = common.home / PAGE

    def show(registry: "Registry", failed: list[dict[str, str]]) -> None:
        from continual.reports.html import stream_page, write_page
        from continual.reports.report import stream_report

        document = stream_report(registry, stream.name) | {"failed": failed}
        write_page(page, stream_page(registry, document))
        if common.json:
            print_json(document)
        else:
            print_summary(out, document)

    learn_stream(common, stream, None, show=show)
    option = "" if common.home == DEFAULT_HOME else f" --home {common.home}"
    print_message(
        f"\nOpen {page.absolute().as_uri()}, or go on with:\n"
        f"  echo {shlex.quote(INPUTS[backbone])} | continual predict{option}\n"
        f"  continual report demo{option}\n"
        f"  continual ui{option}"
    )


def print_summary(console: Console, document: Mapping[str, Any]) -> None:
    """Print one table of the tasks, and what was forgotten and routed, of a stream's report.

    Args:
        console: Where to print.
        document: The report.
    """
    last = zip(*((document[mode]["matrix"] or [[]])[-1] for mode in ("oracle", "routed")), strict=True)
    rows = [
        [task["task"], *_scores(task), *map(_percent, final)]
        for task, final in zip(document["per_task"], last, strict=True)
    ]
    console.print("Scores on test rows, in per cent", style="bold")
    print_table(console, TextTable(COLUMNS, rows, [name not in ("task", "started from") for name in COLUMNS], CAPTION))
    oracle, routed = document["oracle"], document["routed"]
    shares = [task["share"] for task in document["per_task"]]
    for line in (
        f"Learned: each task trained {_percent(max(shares, default=None))} % of the backbone's parameters, apart from "
        "the other tasks.",
        f"Forgotten: {_percent(oracle['forgetting'])} points with the task known, since a delta never changes; "
        f"{_percent(routed['forgetting'])} where the router chooses it among more and more tasks.",
        f"Routed: {_percent(routed['routing_accuracy'])} % of the inputs went to the right task without its name.",
    ):
        print_text(console, line)


def _scores(task: Mapping[str, Any]) -> list[str]:
    parents = ", ".join(parent["delta"].partition("@")[0] for parent in task["parents"])
    return [
        _percent(task["frozen_score"]),
        _percent(task["score"]),
        _percent(task["scratch_score"]),
        parents or "scratch",
    ]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
