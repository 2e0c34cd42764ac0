"""Progress bars: the estimate of what is left, and silence where standard error is no terminal."""

from io import StringIO

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from continual.cli.progress import progress_bars

TASK = "questions-about-parcels_of-private-users"


def drawn(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, width: int = 80) -> str:
    output = StringIO()
    console = Console(file=output, force_terminal=terminal, width=width, color_system=None, legacy_windows=False)
    clock = iter(range(10_000))
    monkeypatch.setattr(console, "get_time", lambda: next(clock))
    with progress_bars(console, [TASK, "idle"]) as callbacks:
        callbacks.on_start(TASK)
        for done in range(50):
            callbacks.on_step(TASK, done, 1000)
        callbacks.on_learned("idle", f"{TASK}@1")
    return output.getvalue()


@pytest.mark.parametrize("width", [80, 100])
def test_bars_estimate_what_is_left_in_one_line(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Text.from_ansi(drawn(monkeypatch, terminal=True, width=width)).plain.splitlines()
    last = next(line for line in reversed(shown) if line.startswith(TASK[:15]))
    assert "5% training" in last
    assert last.rstrip().endswith(" left")
    assert cell_len(last.rstrip()) <= width


def test_nothing_is_drawn_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(monkeypatch, terminal=False) == ""
