"""Progress in the terminal: bars with the time that has passed and the estimate of what is left."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import final

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from continual.callbacks import RunCallbacks
from continual.cli.options import print_message
from continual.escaping import escape_control_characters

MAX_BAR_WIDTH = 20  # characters


@final
class TimeLeftColumn(TimeRemainingColumn):
    """The estimate of the time that is left, empty where there is none."""

    def render(self, task: Task) -> Text:
        """Render the estimate for one bar."""
        return Text() if task.time_remaining is None or task.finished else super().render(task) + Text(" left")


def timed_progress(console: Console, *columns: ProgressColumn, transient: bool = False) -> Progress:
    """Return bars with their times; nothing is drawn where the console is no terminal.

    Args:
        console: Where to draw the bars.
        columns: What follows the bar, or stands before it.
        transient: Remove the bars at the end.
    """
    times = (TimeElapsedColumn(), TimeLeftColumn())
    return Progress(*columns, *times, console=console, transient=transient, disable=not console.is_terminal)


def flexible_bar() -> BarColumn:
    """Return a bar that is narrower where the line has no room for it."""
    return BarColumn(bar_width=None, table_column=Column(max_width=MAX_BAR_WIDTH))


@contextmanager
def progress_bars(console: Console, tasks: Sequence[str]) -> Iterator[RunCallbacks]:
    """Show a bar per task until the block ends; yield the callbacks that update them.

    Args:
        console: Where to draw the bars.
        tasks: The names of the tasks that the callbacks may be called with.
    """
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(overflow="ellipsis")),
        flexible_bar(),
        TaskProgressColumn(),
        TextColumn("{task.fields[state]}", table_column=Column(overflow="ellipsis")),
    )
    with timed_progress(console, *columns) as bars:
        bar_ids = {
            name: bars.add_task(
                escape_control_characters(name), total=None, start=False, state="waiting", visible=False
            )
            for name in tasks
        }

        def start(name: str) -> None:
            bars.start_task(bar_ids[name])
            bars.update(bar_ids[name], state="reading", visible=True)

        def stop(name: str, state: str) -> None:
            bar = bar_ids[name]
            bars.start_task(bar)
            bars.update(bar, total=bars.tasks[bar].total or 1, state=state, visible=True)
            bars.stop_task(bar)

        def wait(name: str, holder: str) -> None:
            bars.update(bar_ids[name], state=escape(escape_control_characters(f"held by {holder}")), visible=True)

        def learned(name: str, delta: str) -> None:
            bars.update(bar_ids[name], total=1, completed=1)
            stop(name, f"[green]{escape(escape_control_characters(delta))}")

        yield RunCallbacks(
            on_note=lambda name, note: print_message(f"{name}: {note}"),
            on_start=start,
            on_step=lambda name, done, total: bars.update(bar_ids[name], completed=done, total=total, state="training"),
            on_wait=wait,
            on_learned=learned,
            on_failed=lambda name, error: stop(name, "[red]failed"),
        )
