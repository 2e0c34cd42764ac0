"""The command that compares strategies of continual learning on a stream."""

from pathlib import Path
from typing import Annotated

import typer

from continual.cli.commands import app, command
from continual.cli.options import BackboneName, BackboneOptions, Html, err, out, print_json, print_message
from continual.settings import EWC_STRENGTH, FULL_FINE_TUNING_LR, REPLAY_ROWS


@command(
    app,
    examples=["continual compare stream.yaml --strategies sequential_delta,replay"],
    remaining="tasks that a strategy has learned are kept",
)
def compare(
    common: BackboneOptions,
    stream: Annotated[Path, typer.Argument(help="A stream file.")],
    strategies: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", help="Names of strategies; by default all but ewc_full and cumulative."),
    ] = None,
    full_rate: Annotated[
        float, typer.Option(help="Learning rate of strategies that train every weight.")
    ] = FULL_FINE_TUNING_LR,
    ewc_strength: Annotated[float, typer.Option(help="Weight of EWC's penalty in the loss.")] = EWC_STRENGTH,
    replay_rows: Annotated[
        int, typer.Option(min=1, help="Training rows of each earlier task that replay stores.")
    ] = REPLAY_ROWS,
    html: Html = None,
    backbone: BackboneName = None,
) -> None:
    """Learn a stream by several strategies of continual learning and compare their measures and costs."""
    from continual.cli.progress import progress_bars
    from continual.cli.tables import print_comparison
    from continual.experiments.strategies import progress_name, select_strategies
    from tasks import read_stream

    loaded = read_stream(stream)
    names = None if strategies is None else [name.strip() for name in strategies.split(",")]
    selected = select_strategies(names, full_rate=full_rate, ewc_strength=ewc_strength, replay_rows=replay_rows)
    if html:
        from continual.reports.html import check_writable

        check_writable(html)
    bars = [*map(progress_name, selected), *(task.name for task in loaded.tasks)]
    with common.learner(backbone or loaded.backbone, create=True) as learner, progress_bars(err, bars) as callbacks:
        document = learner.compare(loaded, selected, callbacks=callbacks)
    if html:
        from continual.reports.html import strategies_page, write_page

        write_page(html, strategies_page(document))
        print_message(f"{html} is written")
    if common.json:
        print_json(document)
    else:
        print_comparison(out, document)
    for failure in document["failed"]:
        print_message(f"strategy {failure['strategy']} failed: {failure['error']}", style="red")
    if document["failed"]:
        raise typer.Exit(1)
