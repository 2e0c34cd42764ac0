"""Progress of a run in the terminal: one bar per task."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from continual.callbacks import RunCallbacks
from continual.cli.options import print_message
from continual.escaping import escape_control_characters


@contextmanager
def progress_bars(console: Console, tasks: Sequence[str]) -> Iterator[RunCallbacks]:
    """Show a bar per task until the block ends; yield the callbacks that update them.

    Args:
        console: Where to draw the bars.
        tasks: The names of the tasks that the callbacks may be called with.
    """
    columns = (
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
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
