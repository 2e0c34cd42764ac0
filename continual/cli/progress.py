"""A run as it goes on, in the terminal: one bar per task."""

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
            name: bars.add_task(
                escape_control_characters(name), total=None, start=False, state="waiting", visible=False
            )
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
            bars.update(rows[name], state=escape(escape_control_characters(f"held by {holder}")), visible=True)

        def learned(name: str, delta: str) -> None:
            bars.update(rows[name], total=1, completed=1)
            end(name, f"[green]{escape(escape_control_characters(delta))}")

        yield RunCallbacks(
            on_note=lambda name, note: print_message(f"{name}: {note}"),
            on_start=began,
            on_step=lambda name, done, total: bars.update(rows[name], completed=done, total=total, state="training"),
            on_wait=lambda name, holder: bars.update(
                rows[name], state=escape(escape_control_characters(f"held by {holder}")), visible=True
            ),
            on_learned=learned,
            on_failed=lambda name, error: end(name, "[red]failed"),
        )
