"""The command that learns a stream by other strategies too."""

from pathlib import Path
from typing import Annotated

import typer

from continual.cli.options import BackboneName, CommonOptions, Html, app, command, err, out, print_json, print_message
from continual.settings import EWC_STRENGTH, FULL_FINE_TUNING_LR, REPLAY_ROWS
from tasks import read_stream


@command(app)
def compare(
    common: CommonOptions,
    stream: Annotated[Path, typer.Argument(help="A stream file.")],
    strategies: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Their names; without it, all but ewc_full.")
    ] = None,
    full_rate: Annotated[
        float, typer.Option(help="The learning rate of strategies that train every weight.")
    ] = FULL_FINE_TUNING_LR,
    ewc_strength: Annotated[float, typer.Option(help="What EWC's penalty counts.")] = EWC_STRENGTH,
    replay_rows: Annotated[
        int, typer.Option(min=1, help="Train rows of each earlier task that replay keeps.")
    ] = REPLAY_ROWS,
    html: Html = None,
    backbone: BackboneName = None,
) -> None:
    """Learn a stream by other strategies of continual learning too, and show what comes of each."""
    from continual.cli.progress import progress_bars
    from continual.cli.tables import print_comparison
    from continual.experiments.strategies import DEFAULT, build_strategies, check_strategy_names, progress_name

    known = read_stream(stream)
    names = DEFAULT if strategies is None else tuple(name.strip() for name in strategies.split(","))
    check_strategy_names(names)
    every = build_strategies(full_at=full_rate, ewc_strength=ewc_strength, replay_rows=replay_rows)
    if html:
        from continual.reports.html import check_writable

        check_writable(html)
    bars = [*map(progress_name, names), *(task.name for task in known.tasks)]
    with common.learner(backbone or known.backbone) as learner, progress_bars(err, bars) as watcher:
        document = learner.compare(known, {name: every[name] for name in names}, callbacks=watcher)
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
