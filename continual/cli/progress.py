"""A run as it goes on, in the terminal: one bar per task."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from continual.cli.options import say
from continual.visible import visible
from continual.watcher import Watcher


@contextmanager
def progress(console: Console, tasks: Sequence[str]) -> Iterator[Watcher]:
    """A bar per task of a stream while it is learned."""
    columns = (
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        rows = {
            name: bars.add_task(visible(name), total=None, start=False, state="waiting", visible=False)
            for name in tasks
        }

        def began(name: str) -> None:
            bars.start_task(rows[name])
            bars.update(rows[name], state="reading", visible=True)

        def end(name: str, state: str) -> None:
            bars.start_task(rows[name])
            bars.update(rows[name], total=bars.tasks[rows[name]].total or 1, state=state, visible=True)
            bars.stop_task(rows[name])

        def waiting(name: str, holder: str) -> None:
            bars.update(rows[name], state=escape(visible(f"held by {holder}")), visible=True)

        def learned(name: str, delta: str) -> None:
            bars.update(rows[name], total=1, completed=1)
            end(name, f"[green]{escape(visible(delta))}")

        yield Watcher(
            noted=lambda name, note: say(f"{name}: {note}"),
            began=began,
            step=lambda name, done, total: bars.update(rows[name], completed=done, total=total, state="training"),
            waiting=lambda name, holder: bars.update(
                rows[name], state=escape(visible(f"held by {holder}")), visible=True
            ),
            learned=learned,
            failed=lambda name, error: end(name, "[red]failed"),
        )
